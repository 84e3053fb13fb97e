"""Exact zeros behind a ReLU: neurons whose gate is zero cost nothing but their gate, and nothing is lost.

Where more sparsity is asked for than there are zeros, a threshold rises above them, one for each block:
FATReLU, the last step of ProSparse (arXiv 2402.13516).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..method.passes.collectors import BlockStatistics
from .chess import CHESS


@dataclass(frozen=True)
class ReLUZeros(CHESS):
    """CATS's thresholds on |act(gate)|, none so low that it keeps a neuron whose gate is exactly zero."""

    name: str = "relu_zeros"
    attention: bool = False
    release: str = "cats"

    def _gate_thresholds(self, statistics: BlockStatistics, touched_sparsity: float) -> Tensor:
        found = super()._gate_thresholds(statistics, touched_sparsity)
        return found.clamp_min(torch.finfo(torch.float32).tiny)
