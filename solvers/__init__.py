"""Algorithms over the formulations: they build and solve models and write plans."""
