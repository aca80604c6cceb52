"""What is seen of a run while it goes on: events, journals, logs, trackers."""
