"""What helps users along: examples of every command, completion, and `doctor`."""
