"""Sparse kernels by language, decode steps and an engine of them, and what each must compute."""
