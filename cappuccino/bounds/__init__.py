"""Bounds that no plan can beat."""
