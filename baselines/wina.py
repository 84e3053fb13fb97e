"""WINA (arXiv 2505.19427), the norm form: |x|·‖W[:, i]‖ with per-token top-k on all seven projections."""

from __future__ import annotations

from dataclasses import dataclass

from ..method.rules import MaskRule, TopK
from .teal import TEAL


@dataclass(frozen=True)
class WINA(TEAL):
    """TEAL's allocation with the paper's rule: the k highest |x_i|·c_i of each token, no rotation."""

    def _alpha(self) -> float:
        return 1.0

    def _mask(self) -> MaskRule:
        return TopK()
