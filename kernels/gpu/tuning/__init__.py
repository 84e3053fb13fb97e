"""Tiles of a decode step, timed on the machine that it runs on."""
