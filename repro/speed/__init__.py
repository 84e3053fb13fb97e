"""Decode speed and kernel speed, measured on a model."""
