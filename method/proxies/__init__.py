"""Proxies of gate and up on a transformers model."""
