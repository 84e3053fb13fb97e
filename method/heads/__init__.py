"""Attention heads that are chosen for each token: routers, and their training."""
