"""The rule of a block: a linear router, and the logit from which on it chooses a group of neurons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..weight_samples import TYPES
from .mechanism import Mechanism


@dataclass(frozen=True, eq=False)
class NeuronRouter:
    """A neuron whose group is not chosen skips a row of gate and of up and a column of down (LTE).

    Groups are neighbouring neurons, as many each.
    """

    weight: Tensor
    """(groups, hidden)"""
    threshold: float
    """A group is chosen where its logit is above this."""

    def logits(self, x: Tensor) -> Tensor:
        """Logit of each group, (..., groups) float32, from what gate and up read, (..., hidden)."""
        return F.linear(x.float(), self.weight.float())

    def chosen(self, x: Tensor, neurons: int) -> Tensor:
        """Neurons of each token, (..., neurons) bool, from what gate and up read, (..., hidden)."""
        of_groups = self.logits(x) > self.threshold
        return of_groups.repeat_interleave(neurons // len(self.weight), dim=-1)

    def mechanisms(self) -> dict[Mechanism, int]:
        """See `ProjectionRule`."""
        return {Mechanism.ROUTER: self.weight.numel()}

    def misfit(self, shapes: Mapping[str, tuple[int, int]]) -> str | None:
        """What does not fit a block of projections of these (out, in); None where all does."""
        neurons, hidden = shapes.get("gate", (0, 0))
        if self.weight.dtype not in TYPES.values():
            return f"its router is of {self.weight.dtype}, not of {', '.join(TYPES)}"
        groups = len(self.weight) if self.weight.ndim == 2 else 0
        if not groups or self.weight.shape[1] != hidden or neurons % groups:
            return (
                f"its router has shape {tuple(self.weight.shape)}, which does not fit a gate of "
                f"{(neurons, hidden)}"
            )
        if not (isinstance(self.threshold, float) and math.isfinite(self.threshold)):
            return f"the threshold of its router is {self.threshold!r}, not a finite number"
        return None

    def to(self, device: torch.device | str, dtype: torch.dtype) -> NeuronRouter:
        """The same rule on `device`, its router in this dtype."""
        return replace(self, weight=self.weight.to(device, dtype).contiguous())
