"""GGUF files, read as the checkpoints that they were made of."""
