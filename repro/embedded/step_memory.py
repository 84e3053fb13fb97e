"""Memory that a training step takes on a CPU, estimated before the kernel ends what asks for too much."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from .recipes import Recipe

MEMORY = Path("/proc/meminfo")
LOGIT_BYTES = 16
"""Bytes of a logit: in bfloat16 and float32, its logarithm, and the gradients of both."""
STREAM_BYTES, NEURON_BYTES = 24, 10
"""Bytes that a block keeps for gradients, of a channel of the residual stream and of a neuron.

`llama-mini` took 264 kB a token on a CPU, 131 of them for its logits.
"""


def step_bytes(recipe: Recipe) -> int:
    """Estimate of what the activations and logits of one batch take."""
    shapes = recipe.architecture
    of_block = STREAM_BYTES * shapes.hidden_size + NEURON_BYTES * shapes.intermediate_size
    of_token = LOGIT_BYTES * shapes.vocab_size + shapes.num_hidden_layers * of_block
    return recipe.batch * recipe.length * of_token


def free_bytes() -> int:
    """Memory that programs can still have on this machine."""
    lines = dict(line.split(":", 1) for line in MEMORY.read_text(encoding="utf-8").splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def check_memory(parser: argparse.ArgumentParser, device: str, recipes: Iterable[Recipe]) -> None:
    """End with one line and code 2 where a step on a CPU would take more memory than is free.

    Nothing is asked of a GPU, which says itself what does not fit.
    """
    if device != "cpu":
        return
    largest, free = max(recipes, key=step_bytes), free_bytes()
    if (most := step_bytes(largest)) > free:
        takes = f"a step of {largest.batch * largest.length:,} tokens takes about {most / 1e9:.0f} GB on a CPU"
        parser.exit(
            2,
            f"error: {takes}, and {free / 1e9:.0f} GB are free; run this with --device cuda on a machine with "
            "a GPU, or where as much memory is free\n",
        )
