"""Sparse matrix-vector kernels, their plain-torch reference, and (later) the decode engine."""
