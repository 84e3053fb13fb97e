"""CHESS (arXiv 2409.01366): per-channel thresholds on the gate activation, and on the inputs of q and o."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.plan.mechanism import Mechanism
from ..method.base import Method
from ..method.calibration import Calibration
from ..method.errors import OutOfReachError, UserError
from ..method.passes.collectors import GateStatistics
from ..method.passes.dense_pass import Need
from ..method.plan import SparsityPlan
from ..method.projections import PROJECTIONS, decoder_blocks, key, parameter_shares
from ..method.provenance import SearchCost
from ..method.rules import RuleBuilder, StaticThreshold

IMPORTANCE_WEIGHTS = {
    "2024": lambda statistics: statistics.up_output.mean_squared().sqrt(),
    "2025": lambda statistics: statistics.up_output.mean_absolute(),
    "cats": lambda statistics: torch.ones_like(statistics.up_output.mean_absolute()),
}
"""Weight m_i of the score |a_i|·m_i: thresholds are τ/m_i. The 2024 release ranks by a²·E[u²], the one of 2025
by |a|·E|u|; with weight 1 the score is that of CATS (arXiv 2404.08763)."""


@dataclass(frozen=True)
class CHESS(Method):
    """A dropped neuron skips a row of up and a column of down; gate, k and v stay dense."""

    name: str = "chess"
    attention: bool = True
    """Selective sparsification of attention: one threshold each on the inputs of q and o."""
    release: str = "2024"
    """Which importance: 2024, 2025, or cats."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.release not in IMPORTANCE_WEIGHTS:
            known = ", ".join(IMPORTANCE_WEIGHTS)
            raise UserError(f"method.release must be one of {known}, not '{self.release}'")

    @property
    def needs(self) -> frozenset[Need]:
        """Statistics of neurons, beside those of what q and o read."""
        return super().needs | {"gate_statistics"}

    @property
    def mechanisms(self) -> frozenset[Mechanism]:
        """Thresholds on the gate."""
        return frozenset({Mechanism.GATE})

    def touched(self) -> tuple[str, ...]:
        """Projections whose weights are skipped."""
        return ("q", "o", "up", "down") if self.attention else ("up", "down")

    def touched_sparsity(self, calibration: Calibration, sparsity: float) -> float:
        """Sparsity k inside the touched projections that makes `sparsity` of the block.

        Raises OutOfReachError when even dropping all they hold is not enough.
        """
        shares = parameter_shares(decoder_blocks(calibration.model)[0])
        reach = sum(shares[name] for name in self.touched())
        if sparsity >= reach:
            raise OutOfReachError(
                f"{self.name} touches {', '.join(self.touched())} only and cannot reach block sparsity "
                f"{sparsity} on this model; the maximum is below {reach:.3f}",
                maximum=reach,
            )
        return sparsity / reach

    def _gate_thresholds(self, statistics: GateStatistics, touched_sparsity: float) -> Tensor:
        weights = IMPORTANCE_WEIGHTS[self.release](statistics)
        wanted = torch.tensor([touched_sparsity])
        return statistics.activation.thresholds(weights, wanted)[0]

    def check_reach(self, calibration: Calibration, sparsity: float) -> None:
        """Only some projections are touched."""
        self.touched_sparsity(calibration, sparsity)

    def _plan(self, calibration: Calibration, sparsity: float, cost: SearchCost) -> SparsityPlan:
        touched_sparsity = self.touched_sparsity(calibration, sparsity)
        with cost.stage("thresholds"):
            builder = RuleBuilder(calibration, StaticThreshold(), dict.fromkeys(calibration.shapes, 0.0))
            attention = {
                key(block, name): touched_sparsity
                for block in range(calibration.blocks)
                for name in PROJECTIONS
                if self.attention and name in ("q", "o")
            }
            plan = builder.plan(attention, touched_sparsity=touched_sparsity)
            plan.gate_thresholds = {
                block: self._gate_thresholds(one, touched_sparsity)
                for block, one in enumerate(calibration.gate_statistics)
            }
        return plan
