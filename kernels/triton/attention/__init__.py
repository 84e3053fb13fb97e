"""Attention of one new token over a static cache, in Triton."""
