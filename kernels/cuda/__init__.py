"""Kernels written in CUDA C++."""
