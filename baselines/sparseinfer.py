"""SparseInfer (arXiv 2411.12692): signs of the input and of gate predict which neurons a ReLU makes zero."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from ..kernels.plan.mechanism import Mechanism
from ..kernels.plan.signs import SignRule, packed_signs
from ..method.base import Method
from ..method.calibration import Calibration
from ..method.errors import OutOfReachError
from ..method.plan import SparsityPlan
from ..method.projections import PROJECTION_PATHS, decoder_blocks, key, parameter_shares
from ..method.provenance import SearchCost
from ..method.signs.predictor import PredictedNeurons, alpha_of, predicted_neurons
from .dense_attention import check_neurons_reach

log = logging.getLogger(__name__)

HALVINGS = 40
"""Steps of the bisection for a recall."""
FEW_ZEROS = 0.01
"""Share of exact zeros behind the gate below which there is nothing to predict."""


@dataclass(frozen=True)
class SparseInfer(Method):
    """A neuron with more negative products than α times its positive ones is left out; α by block.

    Its rows of gate and up and its column of down are not read. Where gate turns out to be zero all the same,
    up and down are not read either, which for up goes beyond the release. Every block's α keeps the same share
    of its active neurons on the calibration text: the one at which the blocks have the sparsity asked for. At 0
    nothing is predicted, and exact zeros alone are left out. The packed signs of gate are read for every token.
    Made for ReLU: elsewhere negative gates are lost as well, which a warning says.
    """

    name: str = "sparseinfer"
    recall: float | None = None
    """Share of every block's active neurons that is kept on the calibration text, whatever sparsity above 0 is
    asked for: more than it gives is out of reach. None: the share follows from the sparsity."""
    needs = frozenset()

    @property
    def mechanisms(self) -> frozenset[Mechanism]:
        """The predictor."""
        return frozenset({Mechanism.SIGNS})

    def check_reach(self, calibration: Calibration, sparsity: float) -> None:
        """Attention is dense."""
        check_neurons_reach(self.name, sparsity, calibration)

    def _plan(self, calibration: Calibration, sparsity: float, cost: SearchCost) -> SparsityPlan:
        with cost.stage("calibration"):
            counted = calibration.remembered("predicted neurons", lambda: predicted_neurons(calibration))
        shares = parameter_shares(decoder_blocks(calibration.model)[0])

        def reached(recall: float) -> float:
            limits = [one.limit(recall) for one in counted]
            by_block = [
                shares["gate"] * one.predicted(limit) + (shares["up"] + shares["down"]) * one.zeros(limit)
                for one, limit in zip(counted, limits, strict=True)
            ]
            return sum(by_block) / len(by_block)

        if max(one.zeros(len(one.every)) for one in counted) < FEW_ZEROS:
            log.warning(
                f"{self.name} predicts exact zeros behind a ReLU, and this model's {calibration.activation} "
                "has hardly any: active neurons are lost instead; take a ReLU model, or another method"
            )
        channels = calibration.shapes[key(0, "gate")][1]
        recall = 1.0 if sparsity == 0.0 else self._recall(reached, sparsity)
        limits = [channels if sparsity == 0.0 else one.limit(recall) for one in counted]
        plan = SparsityPlan(calibration.shapes, signs=self._rules(calibration, limits))
        plan.provenance.details.update(
            recall=recall,
            alphas=[alpha_of(limit, channels) for limit in limits if limit < channels],
            **_quality(counted, limits),
        )
        return plan

    def _recall(self, reached: Callable[[float], float], sparsity: float) -> float:
        """Share of active neurons that is kept. Raises OutOfReachError where too few can be left out so."""
        if self.recall is None:
            return _least(reached, sparsity)
        if (most := reached(self.recall)) < sparsity:
            raise OutOfReachError(
                f"{self.name} with method.recall={self.recall:g} leaves out {most:.3f} of the blocks' weights "
                f"on this model, not {sparsity}; ask for at most that, or lower method.recall",
                maximum=most,
            )
        return self.recall

    @staticmethod
    def _rules(calibration: Calibration, limits: list[int]) -> dict[int, SignRule]:
        gates = (block.get_submodule(PROJECTION_PATHS["gate"]) for block in decoder_blocks(calibration.model))
        pairs = enumerate(zip(gates, limits, strict=True))
        return {block: SignRule(packed_signs(gate.weight.detach()), limit) for block, (gate, limit) in pairs}


def _least(reached: Callable[[float], float], sparsity: float) -> float:
    """The highest share of active neurons kept at which the sparsity is reached; it falls with that share."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) >= sparsity else (low, middle)
    return low


def _quality(counted: list[PredictedNeurons], limits: list[int]) -> dict[str, list[float]]:
    pairs = list(zip(counted, limits, strict=True))
    return {
        "recalls": [one.recall(limit) for one, limit in pairs],
        "precisions": [one.precision(limit) for one, limit in pairs],
        "predicted": [one.predicted(limit) for one, limit in pairs],
    }
