"""What the benchmarks' command lines have in common: numbers that make sense, and a GPU."""

from __future__ import annotations

import argparse

import torch


def share(text: str) -> float:
    """A sparsity, or another share of a whole. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return value


def count(text: str) -> int:
    """A number of rows, tokens, rounds. Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 up")
    return int(text)


def gpu(parser: argparse.ArgumentParser) -> torch.device:
    """The GPU; ends the program where there is none."""
    if not torch.cuda.is_available():
        parser.error("steps are timed on a CUDA GPU; there is none")
    return torch.device("cuda")
