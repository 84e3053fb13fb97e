"""A plan that acts on a transformers model: hooks by mechanism, and what a token then reads."""
