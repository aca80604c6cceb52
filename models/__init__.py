"""Formulations: data in, model object out."""
