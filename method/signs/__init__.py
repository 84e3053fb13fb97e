"""SparseInfer's predictor: what signs predict on a text."""
