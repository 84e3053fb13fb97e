"""Neurons that signs predict to be zero (SparseInfer, arXiv 2411.12692): the rule, and the products."""
