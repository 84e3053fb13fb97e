"""What is known of a token while a block computes it, and thresholds that follow it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .shifted_pass import Lost, Seen

Feature = Callable[[Seen, slice], Tensor]
"""(rows, length, features) of the tokens in the block that the last stream enters; slice: rows of the text."""
LEAST = 1e-4
"""Nats that a token's divergence is taken as at least, where its logarithm is."""
RIDGE = 3e-3
"""Ridge of the regression, by token and over features of unit variance."""
FIRST = (1, 4, 16, 64, 256)
"""Positions that are told apart from those behind."""


def positions(length: int) -> Feature:
    """Whether a token stands among the first ones of its sequence."""
    at = torch.arange(length)
    told = torch.stack([at < first for first in FIRST], dim=-1).float()
    return lambda seen, _: told.expand(len(seen.streams[-1]), -1, -1)


def given(values: Tensor) -> Feature:
    """What is known of each token before the pass, (rows of the text, length, features)."""
    return lambda _, rows: values[rows]


def stream_size(seen: Seen, _: slice) -> Tensor:
    """Root mean square of what enters the block, its logarithm."""
    return seen.streams[-1].square().mean(-1, keepdim=True).clamp_min(1e-12).log2()


def stream_itself(seen: Seen, _: slice) -> Tensor:
    """What enters the block over its size: a linear probe."""
    stream = seen.streams[-1]
    return stream / stream.square().mean(-1, keepdim=True).clamp_min(1e-12).sqrt()


def kept_before(seen: Seen, _: slice) -> Tensor:
    """Share of weights read in the block before, and in all before; nothing in the first."""
    if len(seen.streams) == 1:
        return torch.zeros(*seen.streams[-1].shape[:2], 2)
    before = seen.kept[: len(seen.streams) - 1]
    return torch.stack([before[-1], torch.stack(before).mean(0)], dim=-1)


def price(lost: Lost) -> Tensor:
    """Logarithm of each token's divergence, (rows, length)."""
    return lost.divergence.clamp_min(LEAST).log2()


@dataclass(frozen=True)
class Followed:
    """Thresholds that follow what a feature tells of a token's price, by a regression in each block."""

    feature: Feature
    weights: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]
    """Mean, deviation and weights of the features by block, (features,) each, and the price's mean."""
    strength: float
    """Octaves that thresholds fall by where the price doubles."""

    def octaves(self, seen: Seen, rows: slice) -> Tensor:
        """See `Shift`."""
        mean, deviation, weights, _ = self.weights[len(seen.streams) - 1]
        return -self.strength * ((self.feature(seen, rows) - mean) / deviation) @ weights


def fitted(feature: Feature, lost: Lost, batch_size: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Ridge regression of the logarithm of the divergence in every block; `lost` has what was seen."""
    found = []
    wanted = price(lost).flatten()
    for block in range(len(lost.read)):
        parts = [
            feature(Seen(seen.streams[: block + 1], seen.kept), slice(n * batch_size, (n + 1) * batch_size))
            for n, seen in enumerate(lost.seen)
        ]
        x = torch.cat(parts).flatten(0, 1).double()
        mean, deviation = x.mean(0), x.std(0).clamp_min(1e-9)
        x = (x - mean) / deviation
        y = wanted.double() - wanted.double().mean()
        normal = x.T @ x / len(x) + RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
        weights = torch.linalg.solve(normal, x.T @ y / len(x))
        found.append((mean.float(), deviation.float(), weights.float(), wanted.mean()))
    return found
