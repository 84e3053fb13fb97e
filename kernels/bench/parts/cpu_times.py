"""Decode steps on a CPU: how long each token takes, and on what."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch

from ...cpu.build import cpu_facts
from ...model.static_cache import StaticCache


def processor() -> str:
    """The processor and how many threads of it compute."""
    return f"{cpu_facts().get('model name', 'CPU')}, {torch.get_num_threads()} threads"


def cpu_step_times(
    step: Callable[[torch.Tensor], object], cache: StaticCache, context: int, tokens: int
) -> list[float]:
    """Milliseconds of each of so many tokens, every one behind the same `context` tokens."""
    found = []
    for token in range(tokens):
        cache.length.fill_(context)
        started = perf_counter()
        step(torch.tensor([token]))
        found.append(1e3 * (perf_counter() - started))
    return found
