"""The rule of a block: packed signs of gate's weights, and how many negative products make a neuron zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..mechanism import Mechanism


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
