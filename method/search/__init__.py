"""Searches over sparsities and exponents: probes, greedy steps, candidates."""
