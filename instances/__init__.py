"""Shipped instances, their length distributions and cost tables, and the scripts that generate them."""
