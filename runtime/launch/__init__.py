"""Processes of a run: one per stage, what they leave behind, how they end."""
