"""LTE (arXiv 2402.06126, "Learn To be Efficient"): routers trained with the model choose a token's neurons.

The training is `repro.train`'s; this reads the routers that it left beside the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..kernels.plan.mechanism import Mechanism
from ..kernels.plan.routers import NeuronRouter
from ..method.base import Method
from ..method.calibration import Calibration
from ..method.errors import UserError
from ..method.passes.collectors import collected_inputs
from ..method.plan import SparsityPlan
from ..method.projections import PROJECTION_PATHS, key, model_projections, split_key
from ..method.provenance import PlanProvenance, SearchCost
from ..method.stored.routers import FILE, stored_routers
from .dense_attention import check_neurons_reach, neuron_share


@dataclass(frozen=True)
class LTE(Method):
    """Groups of neurons whose router's sigmoid is above a threshold; attention is dense.

    The threshold is the trained one, 0.5, where the routers leave out as much as is asked for, and else the one
    at which they do on the calibration text, the same in all blocks. At 0 all neurons are computed, which is
    not the model that was trained. What is read of the routers comes out of the sparsity asked for.
    """

    name: str = "lte"
    routers: str | None = None
    """Folder of the routers' file; None: that of the model."""
    needs = frozenset()

    @property
    def mechanisms(self) -> frozenset[Mechanism]:
        """Routers."""
        return frozenset({Mechanism.ROUTER})

    def _weights(self, calibration: Calibration) -> list[Tensor]:
        """Routers of the blocks. Raises UserError where there are none of this model."""
        folder = self.routers or calibration.model.name_or_path
        if not folder:
            raise UserError(f"{self.name} needs a model that was trained with routers; this one has no folder")
        weights = stored_routers(Path(folder), calibration.blocks, calibration.weight_samples)
        for block, weight in enumerate(weights):
            shapes = {name: calibration.shapes[key(block, name)] for name in PROJECTION_PATHS}
            if problem := NeuronRouter(weight, 0.0).misfit(shapes):
                raise UserError(f"{folder}/{FILE}: block {block}: {problem}; take the file of this very model")
        return weights

    @staticmethod
    def _read(calibration: Calibration, weights: list[Tensor]) -> float:
        """Size of the routers as a share of the blocks' weights."""
        size = sum(out * inner for out, inner in calibration.shapes.values())
        return sum(weight.numel() for weight in weights) / size

    def check_reach(self, calibration: Calibration, sparsity: float) -> None:
        """Attention is dense, and routers are read."""
        read = self._read(calibration, self._weights(calibration))
        check_neurons_reach(self.name, sparsity, calibration, read, "routers")

    def _plan(self, calibration: Calibration, sparsity: float, cost: SearchCost) -> SparsityPlan:
        plan = SparsityPlan(calibration.shapes)
        if not sparsity:
            return plan
        weights = self._weights(calibration)
        with cost.stage("calibration"):
            logits = calibration.remembered(
                ("logits of routers", self.routers), lambda: router_logits(calibration, weights)
            )
        dropped = (sparsity + self._read(calibration, weights)) / neuron_share(calibration)
        threshold = max(0.0, logits.kthvalue(max(1, round(dropped * len(logits)))).values.item())
        found = {"threshold": threshold, "dropped": float((logits <= threshold).float().mean())}
        rules = {block: NeuronRouter(weight, threshold) for block, weight in enumerate(weights)}
        return replace(plan, routers=rules, provenance=PlanProvenance(details=found))


@dataclass
class RouterLogits:
    """Collector of what a router says of its inputs."""

    router: NeuronRouter
    found: list[Tensor] = field(default_factory=list)
    """Logits of each batch, (tokens·groups,)."""

    def update(self, x: Tensor) -> None:
        """Add inputs (..., hidden)."""
        self.found.append(self.router.logits(x).flatten().cpu())


def router_logits(calibration: Calibration, weights: list[Tensor]) -> Tensor:
    """Logits of all blocks' routers on the calibration text, (tokens·groups,) float32, from one dense pass."""
    model = calibration.model
    gates = {name: linear for name, linear in model_projections(model).items() if split_key(name)[1] == "gate"}
    routers = (NeuronRouter(weight, 0.0).to(calibration.device, model.dtype) for weight in weights)
    collectors = dict(zip(gates, map(RouterLogits, routers), strict=True))
    found = collected_inputs(collectors, gates, model, calibration.input_ids, calibration.batch_size)
    return torch.cat([logits for one in found.values() for logits in one.found])
