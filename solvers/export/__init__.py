"""The models behind a plan, as files that other solvers read."""
