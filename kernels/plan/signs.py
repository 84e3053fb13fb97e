"""Neurons that signs predict to be zero (SparseInfer, arXiv 2411.12692): the rule, and packed signs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .mechanism import Mechanism

BITS = 8


@dataclass(frozen=True, eq=False)
class SignRule:
    """A neuron that is taken to be zero skips a row of gate; any zero one of up and a column of down."""

    signs: Tensor
    """(ffn, hidden / 8 rounded up) uint8, a bit for each weight of gate: 1 where it is negative."""
    limit: int
    """A neuron with more negative products of an input and a weight than this is taken to be zero."""

    def misfit(self, shapes: Mapping[str, tuple[int, int]]) -> str | None:
        """What does not fit a block of projections of these (out, in); None where all does."""
        out, inner = shapes.get("gate", (0, 0))
        if tuple(self.signs.shape) != (out, -(-inner // 8)) or self.signs.dtype != torch.uint8:
            return (
                f"its signs have shape {tuple(self.signs.shape)}, which does not fit a gate of {(out, inner)}"
            )
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or not 0 <= self.limit <= inner:
            return f"its limit of negative products is {self.limit!r}, not a number of {inner} channels"
        return None

    def to(self, device: torch.device | str) -> SignRule:
        """The same rule on `device`."""
        return SignRule(self.signs.to(device), self.limit)

    @staticmethod
    def mechanisms() -> dict[Mechanism, int]:
        """See `ProjectionRule`; signs are counted as bytes."""
        return {Mechanism.SIGNS: 0}


def packed_signs(weight: Tensor) -> Tensor:
    """Signs of (rows, channels): (rows, channels / 8 rounded up) uint8, channel i at bit i % 8 of its byte."""
    rows, channels = weight.shape
    bits = torch.zeros(rows, -(-channels // BITS) * BITS, dtype=torch.uint8, device=weight.device)
    bits[:, :channels] = weight < 0
    places = torch.arange(BITS, dtype=torch.uint8, device=weight.device)
    return (bits.view(rows, -1, BITS) << places).sum(dim=-1, dtype=torch.uint8)


def plus_minus(signs: Tensor, channels: int) -> Tensor:
    """Packed signs as (rows, channels) float32: -1 where a bit is set, else 1."""
    places = torch.arange(BITS, dtype=torch.uint8, device=signs.device)
    bits = (signs[..., None] >> places) & 1
    return 1.0 - 2.0 * bits.flatten(-2)[..., :channels].float()


def negative_products(x: Tensor, unpacked: Tensor) -> Tensor:
    """How many products x_i·w_i have unlike signs, (..., rows) float32, exact; a zero counts as positive.

    x: (..., channels); unpacked: `plus_minus` of the weights' signs. The sum of the products of signs is the
    positive ones less the negative ones.
    """
    signs = torch.where(x < 0, -1.0, 1.0).to(unpacked.dtype)
    return (x.shape[-1] - signs @ unpacked.T) / 2.0
