"""File formats of the research prototype that this project started from."""
