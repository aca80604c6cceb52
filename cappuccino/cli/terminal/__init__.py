"""What is shown on the terminal: progress, tables, a run while it goes on and when it is over."""
