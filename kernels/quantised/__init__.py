"""Weights in few bits, laid out so that the row of a dropped input channel is never read."""
