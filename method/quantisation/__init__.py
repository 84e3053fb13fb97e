"""Weights in few bits, in evaluation: quantisers, and a model that computes with dequantised weights."""
