"""Profiles: which points are measured, and the cost table that they make."""
