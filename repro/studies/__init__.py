"""Studies of what a method might still gain: what was tried, measured and not built."""
