"""Analytic cost tables: published specifications, a roofline model and its calibration on a measured table."""
