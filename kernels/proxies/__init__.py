"""Copies of gate and up in 4 bits, a product with which chooses the neurons of a token."""
