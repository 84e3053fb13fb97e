"""Suites: what a model is asked, and how answers are scored."""
