"""Checkpoints: where they are, what they are, how they are loaded."""
