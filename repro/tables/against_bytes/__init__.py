"""Tables of curves: quality against the bytes a token reads."""
