"""SparseInfer's predictor on transformers models: hooks that execute it, and what it predicts on a text."""
