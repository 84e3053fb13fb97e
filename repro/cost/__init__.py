"""Costs of plans, cells and whole reproductions."""
