"""One token on a GPU: the decode step and its tiles."""
