"""How one projection drops input channels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .mechanism import Mechanism

SHARED = ("sum", "maximum")
"""Ways to score a channel for all rows of a decode step."""
LEAST = torch.finfo(torch.float32).tiny
"""A threshold that zero alone does not reach, and whose inverse is finite."""


@dataclass(frozen=True)
class ProjectionRule:
    """How one projection drops input channels: by static thresholds or by per-token top-k.

    Exactly one of `thresholds` and `top_k` is given. A low-rank pair adds back an approximation of what the
    dropped channels would have contributed.
    """

    thresholds: Tensor | None = None
    """(in,) float32; channel i is kept where |x_i| ≥ thresholds[i]."""
    top_k: int | None = None
    """Number of channels kept for each token."""
    bounds: tuple[int, int] | None = None
    """Fewest and most channels that a token keeps of what the thresholds say: those of the highest
    |x_i|/thresholds[i]. None: as many as reach theirs."""
    weights: Tensor | None = None
    """(in,) channel weights of the top-k score |x_i|·weights[i]."""
    shared: str | None = None
    """How the rows of a decode step share one top-k, one of SHARED: |x| of the score is their sum, or their
    maximum. None: each row has its own, which one row alone has in any case."""
    left: Tensor | None = None
    """(out, rank) factor of the low-rank path."""
    right: Tensor | None = None
    """(rank, in) factor of the low-rank path."""
    bias: Tensor | None = None
    """(out,) added to the output of sparse tokens, for what they lack on the average."""

    def __post_init__(self) -> None:
        if (self.thresholds is None) == (self.top_k is None):
            raise ValueError("a projection rule needs either thresholds or top_k")
        if (self.top_k is None) != (self.weights is None):
            raise ValueError("a top-k rule needs the channel weights of its score")
        if self.shared is not None and (self.top_k is None or self.shared not in SHARED):
            raise ValueError(
                f"a mask is shared by top-k over the {' or the '.join(SHARED)}, not {self.shared!r}"
            )
        if self.bounds is not None and self.thresholds is None:
            raise ValueError("bounds on the channels kept are of thresholds; top-k says how many by itself")
        if (self.left is None) != (self.right is None):
            raise ValueError("a low-rank path needs both of its factors")

    @property
    def rank(self) -> int:
        """Rank of the low-rank path, 0 where there is none."""
        return 0 if self.left is None else self.left.shape[-1]

    @property
    def ranks(self) -> bool:
        """Whether scores of a token's channels are compared with each other: top-k, and bounds on k."""
        return self.top_k is not None or self.bounds is not None

    def mechanisms(self) -> dict[Mechanism, int]:
        """What the rule is made of, and the weights that each reads for every token beside kept channels."""
        mask = Mechanism.THRESHOLD if self.top_k is None else Mechanism.TOP_K
        if self.shared is not None:
            mask = Mechanism.SHARED_TOP_K
        if self.bounds is not None:
            mask = Mechanism.BOUNDED
        found = {mask: 0}
        if self.left is not None:
            found[Mechanism.LOW_RANK] = self.left.numel() + self.right.numel()
        if self.bias is not None:
            found[Mechanism.BIAS] = self.bias.numel()
        return found

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """What does not fit a projection of this (out, in); None where all does."""
        out, inner = shape
        k = self.top_k
        if k is not None and (isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= inner):
            return f"top_k is {k!r}, not a number of its {inner} channels"
        if (bounds := self.bounds) is not None and not (
            all(type(bound) is int for bound in bounds) and 0 <= bounds[0] <= bounds[1] <= inner
        ):
            return f"bounds {list(bounds)} are not two numbers of its {inner} channels in order"
        expected = {
            "thresholds": (inner,),
            "weights": (inner,),
            "left": (out, self.rank),
            "right": (self.rank, inner),
            "bias": (out,),
        }
        for part, wanted in expected.items():
            value = getattr(self, part)
            if value is not None and tuple(value.shape) != wanted:
                return f"{part} has shape {tuple(value.shape)}, which does not fit {shape}"
        return None

    @classmethod
    def of_nonzero(cls, channels: int, device: torch.device | str = "cpu") -> ProjectionRule:
        """The rule under which every channel is kept that is not zero."""
        return cls(thresholds=torch.full((channels,), LEAST, dtype=torch.float32, device=device))

    def to(self, device: torch.device | str, factors: torch.dtype | None = None) -> ProjectionRule:
        """The same rule on `device`, as it is, or with factors of this dtype and all else in float32."""
        mask = None if factors is None else torch.float32

        def moved(value: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
            return None if value is None else value.to(device, dtype).contiguous()

        return replace(
            self,
            thresholds=moved(self.thresholds, mask),
            weights=moved(self.weights, mask),
            left=moved(self.left, factors),
            right=moved(self.right, factors),
            bias=moved(self.bias, factors),
        )
