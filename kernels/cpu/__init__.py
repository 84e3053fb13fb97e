"""Decoding and products on a CPU."""
