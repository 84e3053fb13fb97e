"""Methods in bases that are folded into the weights."""
