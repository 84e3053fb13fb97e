"""Sparse kernels: what each must compute, in plain torch, and matrix-vector products for CPUs in C++."""
