"""Prox (arXiv 2607.27591), as far as published: 4-bit proxies of gate and up choose a token's neurons.

Its abstract was read, and what others wrote of its stages: a product of the largest |x| with the proxies ranks
the neurons, which gate, up and down then compute exactly. Attention is dense.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..kernels.plan.mechanism import Mechanism
from ..kernels.plan.proxies import ProxyRule
from ..method.base import Method
from ..method.calibration import Calibration
from ..method.errors import UserError
from ..method.plan import SparsityPlan
from ..method.projections import key
from ..method.provenance import PlanProvenance, SearchCost
from .dense_attention import check_neurons_reach, neuron_share


@dataclass(frozen=True)
class Prox(Method):
    """The ⌊(1 − s)·n⌋ neurons of the highest |act(x̂·Ĝ)·(x̂·Û)| of each token, Ĝ and Û in 4 bits.

    x̂ has the largest |x| of a token, the others are zero. What is read of the proxies comes out of the
    sparsity asked for: s is higher by it. Where the model's own weights are in 4 bits the proxies are these,
    and read all the same.
    """

    name: str = "prox"
    input_share: float = 0.5
    """Share of the input's channels that meet the proxies; it is not published where this was read."""
    group: int = 64
    """Neurons that share a scale of the proxies; not published."""
    needs = frozenset()

    @property
    def mechanisms(self) -> frozenset[Mechanism]:
        """Proxies."""
        return frozenset({Mechanism.PROXY})

    def _rule(self, calibration: Calibration, kept_share: float) -> ProxyRule:
        neurons, channels = calibration.shapes[key(0, "gate")]
        kept = int(neurons * kept_share + 1e-9)
        return ProxyRule(neurons, channels, kept, max(1, int(channels * self.input_share + 1e-9)), self.group)

    def _read(self, calibration: Calibration) -> float:
        """What is read of the proxies, as a share of a block's weights."""
        shapes = [shape for name, shape in calibration.shapes.items() if name.startswith("0.")]
        read = self._rule(calibration, 1.0).mechanisms()[Mechanism.PROXY]
        return read / sum(out * inner for out, inner in shapes)

    def check_reach(self, calibration: Calibration, sparsity: float) -> None:
        """Attention is dense, and proxies are read; UserError for a group of more neurons than there are."""
        neurons = calibration.shapes[key(0, "gate")][0]
        if self.group > neurons:
            raise UserError(f"prox: group={self.group} is more than a block's {neurons} neurons; lower it")
        check_neurons_reach(self.name, sparsity, calibration, self._read(calibration), "proxies")

    def _plan(self, calibration: Calibration, sparsity: float, cost: SearchCost) -> SparsityPlan:
        plan = SparsityPlan(shapes=calibration.shapes)
        if not sparsity:
            return plan
        read = self._read(calibration)
        dropped = (sparsity + read) / neuron_share(calibration)
        rule = self._rule(calibration, 1.0 - dropped)
        found = {"neurons_dropped": dropped, "proxy_share": read}
        rules = dict.fromkeys(range(calibration.blocks), rule)
        return replace(plan, proxies=rules, provenance=PlanProvenance(details=found))
