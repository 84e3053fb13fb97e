"""How the next token follows from logits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Protocol

import torch
from torch import Tensor

from ..errors import KernelError

INTEGERS = (torch.int64, torch.int32)
"""Types of token ids."""


class Sampler(Protocol):
    """A choice of next tokens."""

    def __call__(self, logits: Tensor) -> Tensor:
        """(batch, vocabulary) → (batch,) int64."""
        ...


@dataclass(frozen=True)
class Greedy:
    """The most probable token."""

    def __call__(self, logits: Tensor) -> Tensor:
        """See `Sampler`."""
        return logits.argmax(dim=-1)


@dataclass(frozen=True)
class Multinomial:
    """A token drawn by its probability at a temperature.

    The same draw as transformers' `generate(do_sample=True, top_k=0, top_p=…)` from the same seed.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    """The smallest set of tokens that holds this probability is drawn from."""
    generator: torch.Generator | None = None
    """Where draws come from; None: torch's generator of the device."""

    def __post_init__(self) -> None:
        if not isinstance(self.temperature, Real) or not 0 < self.temperature < math.inf:
            raise KernelError(f"temperature {self.temperature!r} is no number above 0; greedy needs no sampler")
        if not isinstance(self.top_p, Real) or not 0 < self.top_p <= 1:
            raise KernelError(f"top_p {self.top_p!r} is no number in (0, 1]")

    def __call__(self, logits: Tensor) -> Tensor:
        """See `Sampler`."""
        logits = logits / self.temperature
        if self.top_p < 1.0:
            ascending, order = logits.sort(dim=-1)
            tail = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1.0 - self.top_p
            tail[:, -1] = False  # one token always stays
            logits = logits.masked_fill(tail.scatter(1, order, tail), -torch.inf)
        return torch.multinomial(logits.softmax(dim=-1), num_samples=1, generator=self.generator)[:, 0]


def chosen(sampler: Sampler, logits: Tensor) -> Tensor:
    """The tokens (batch,) int64 that a sampler takes; raises KernelError where it returns anything else."""
    tokens = sampler(logits)
    if not isinstance(tokens, Tensor) or tokens.shape != logits.shape[:1] or tokens.dtype not in INTEGERS:
        found = (tuple(tokens.shape), tokens.dtype) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise KernelError(f"a sampler returns token ids ({logits.shape[0]},) int64, not {found}")
    return tokens.long()


def require_finite(largest: Tensor, what: str) -> None:
    """Raise KernelError where the largest of some logits, a scalar or any shape, is nan or infinite.

    A maximum is nan where any number is. Reading it waits for the device.
    """
    if not bool(largest.isfinite().all()):
        raise KernelError(
            f"{what} is not finite: the weights or the plan hold values that are no numbers, or float16 is too "
            "narrow for this model"
        )
