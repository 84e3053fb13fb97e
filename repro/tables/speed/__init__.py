"""Tables of decode speed."""
