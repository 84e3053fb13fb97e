"""Cells that were measured: read from their records, and compared with one another."""
