"""Speed of kernels and memory, measured."""
