"""One token on a GPU: the decode step, its tiles and their tuning."""
