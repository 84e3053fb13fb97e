"""Exact zeros behind a ReLU: neurons whose gate is zero cost nothing but their gate, and nothing is lost.

Where more sparsity is asked for than there are zeros, a threshold rises above them, one for each block:
FATReLU, the last step of ProSparse (arXiv 2402.13516).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from torch import Tensor

from ..kernels.plan.projection_rule import LEAST
from ..method.calibration import Calibration
from ..method.passes.collectors import GateStatistics
from ..method.plan import SparsityPlan
from ..method.provenance import SearchCost
from .chess import CHESS
from .sparseinfer import FEW_ZEROS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReLUZeros(CHESS):
    """CATS's thresholds on |act(gate)|, none so low that it keeps a neuron whose gate is exactly zero.

    Made for ReLU: elsewhere it is CATS, which a warning says.
    """

    name: str = "relu_zeros"
    attention: bool = False
    release: str = "cats"

    def _plan(self, calibration: Calibration, sparsity: float, cost: SearchCost) -> SparsityPlan:
        if max(one.activation.zeros for one in calibration.gate_statistics) < FEW_ZEROS:
            log.warning(
                f"{self.name} skips exact zeros behind a ReLU, and this model's {calibration.activation} has "
                "hardly any: what it drops above them is CATS's; take a ReLU model, or method=cats"
            )
        return super()._plan(calibration, sparsity, cost)

    def _gate_thresholds(self, statistics: GateStatistics, touched_sparsity: float) -> Tensor:
        found = super()._gate_thresholds(statistics, touched_sparsity)
        return found.clamp_min(LEAST)
