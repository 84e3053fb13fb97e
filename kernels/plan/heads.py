"""A rule of a plan for the heads of one block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .mechanism import Mechanism


@dataclass(frozen=True)
class HeadRule:
    """Key-value groups that attention looks at: those of the highest scores, chosen anew for each token.

    The scores are a linear router's on what q, k and v read; a group's is the highest of its heads' logits
    (Polar Sparsity, arXiv 2505.14884). At the heads of other groups the output of attention is zero. Their new
    keys and values are computed and cached all the same.
    """

    weight: Tensor
    """(heads, hidden)"""
    bias: Tensor
    """(heads,)"""
    groups: int
    """Key-value groups of the model."""
    kept: int
    """Groups that a token looks at."""

    def logits(self, x: Tensor) -> Tensor:
        """Logit of each head, (..., heads) float32, from what q, k and v read, (..., hidden)."""
        return F.linear(x.float(), self.weight.float(), self.bias.float())

    def chosen(self, x: Tensor) -> Tensor:
        """Groups of each token, (..., groups) bool, from what q, k and v read, (..., hidden)."""
        scores = self.logits(x).unflatten(-1, (self.groups, -1)).amax(-1)
        best = scores.sort(dim=-1, descending=True, stable=True).indices[..., : self.kept]
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)

    def mechanisms(self) -> dict[Mechanism, int]:
        """See `ProjectionRule`."""
        return {Mechanism.HEADS: self.weight.numel() + self.bias.numel()}

    def misfit(self, shapes: Mapping[str, tuple[int, int]]) -> str | None:
        """What does not fit a block of projections of these (out, in); None where all does."""
        heads = self.bias.shape[0] if self.bias.ndim == 1 else 0
        (width, hidden), (kv_width, _) = shapes.get("q", (0, 0)), shapes.get("k", (0, 0))
        if not heads or tuple(self.weight.shape) != (heads, hidden):
            return f"its router has shape {tuple(self.weight.shape)}, which does not fit {hidden} channels"
        if self.groups < 1 or width % heads or heads % self.groups or width // heads * self.groups != kv_width:
            return f"its router has {heads} heads in {self.groups} groups, q {width} columns and k {kv_width}"
        if not 1 <= self.kept <= self.groups:
            return f"{self.kept} of {self.groups} key-value groups cannot be kept"
        return None

    def to(self, device: torch.device | str, dtype: torch.dtype) -> HeadRule:
        """The same rule on `device`, its router in this dtype."""
        weight, bias = (part.to(device, dtype).contiguous() for part in (self.weight, self.bias))
        return replace(self, weight=weight, bias=bias)
