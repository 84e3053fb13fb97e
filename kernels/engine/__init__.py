"""A transformers model and a plan in, tokens out."""
