"""Checkpoints of adapters: what stages write while they train, and how training goes on from it."""
