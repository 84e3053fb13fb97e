"""Error of a block's output under sparse projections: what is summed, and over which tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..settings import Settings

Form = Literal["squared", "norm", "relative"]
Positions = Literal["all", "after_first", "late"]


def counted(positions: Positions, length: int) -> slice:
    """Tokens of a sequence that count: all, all but the first, or the last quarter, at least one."""
    first = {"all": 0, "after_first": min(1, length - 1), "late": -(-3 * length // 4)}[positions]
    return slice(min(first, length - 1), None)


@dataclass(frozen=True)
class BlockError(Settings):
    """Error of candidates from the differences of their outputs to the dense block's.

    squared: mean of ‖Y − Y'‖² (WiSparse, arXiv 2602.14452, sec. 4.3). norm: mean over rows and features of the
    L2 norm over the tokens (TEAL's code, which looks at late positions alone). relative: each token's squared
    error over its own squared output, so that no token outweighs the others.
    """

    form: Form = "squared"
    positions: Positions = "all"

    def __call__(self, difference: Tensor, dense: Tensor) -> Tensor:
        """Error (candidates,) of differences (candidates, rows, length, hidden) to (rows, length, hidden)."""
        tokens = counted(self.positions, difference.shape[2])
        found = difference[:, :, tokens].float()
        if self.form == "norm":
            return found.norm(dim=2).flatten(1).mean(dim=1)
        if self.form == "squared":
            return found.square().flatten(1).mean(dim=1)
        size = dense[:, tokens].float().square().sum(dim=-1).clamp_min(1e-12)
        return (found.square().sum(dim=-1) / size).flatten(1).mean(dim=1)
