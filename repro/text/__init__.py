"""Data sets and calibration text."""
