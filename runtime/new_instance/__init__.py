"""An instance to start from, made from raw data."""
