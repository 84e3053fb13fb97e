"""WINA (arXiv 2505.19427), the norm form: |x|·‖W[:, i]‖ with per-token top-k on all seven projections."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..method.rules import MaskRule, TopK
from ..method.search.budget import QUICK
from .teal import TEAL


@dataclass(frozen=True)
class WINA(TEAL):
    """TEAL's allocation with the paper's score, |x_i|·c_i, no rotation."""

    name: str = "wina"
    mask: MaskRule = field(default_factory=TopK)
    greedy_step: float = QUICK.wina_greedy_step

    def _alpha(self, projection: str) -> float:
        return 1.0
