"""Weights in few bits, in evaluation: quantisers by format, and calibrated ones."""
