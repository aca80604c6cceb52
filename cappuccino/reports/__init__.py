"""What is told of plans, tables and runs: plots, prediction errors, robustness, warnings."""
