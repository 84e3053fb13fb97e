"""Attention heads that are chosen for each token: routers, their training, and their execution under hooks."""
