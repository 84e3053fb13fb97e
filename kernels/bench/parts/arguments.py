"""What the benchmarks' command lines have in common: numbers that make sense, and a GPU."""

from __future__ import annotations

import argparse
from pathlib import Path

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


def step_parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments of a table of whole steps: shapes, device, context, and the table."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="llama3.1-8b", help="a model of conf/model")
    parser.add_argument("--blocks", type=count, default=None, help="blocks of the model; as it has")
    parser.add_argument("--context", type=count, default=128)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--csv", type=Path, help="append the rows to this table, too")
    return parser


def device_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> torch.device:
    """The device that was asked for; ends the command where it is a GPU and there is none."""
    return gpu(parser) if options.device == "cuda" else torch.device("cpu")
