"""JSON Schemas of instance and plan files, for editors and other programs; `generate.py` makes them from the models."""
