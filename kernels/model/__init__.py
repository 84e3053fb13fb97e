"""A decoder as kernels see it: its anatomy and shape, its weights as they are packed, and its cache."""
