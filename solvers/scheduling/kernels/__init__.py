"""Compiled inner loops of the searches, and the arrays that they work on."""
