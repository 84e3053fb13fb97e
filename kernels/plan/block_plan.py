"""A sparsity plan as runtimes read it: block by block, each with the mechanisms that it is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..model.decoder import SITES
from .bases import Rotation
from .heads import HeadRule
from .mechanism import Mechanism
from .projection_rule import ProjectionRule
from .proxies import ProxyRule
from .routers import NeuronRouter
from .signs import SignRule


@dataclass(frozen=True)
class GateRule:
    """Neurons that are dropped by their gate: a row of up and a column of down each (CATS, CHESS)."""

    thresholds: Tensor
    """(ffn,) float32 thresholds on |silu(gate)|."""

    @staticmethod
    def mechanisms() -> dict[Mechanism, int]:
        """See `ProjectionRule`."""
        return {Mechanism.GATE: 0}


@dataclass(frozen=True)
class BlockPlan:
    """All that a plan does in one block; a projection that is not named keeps every channel."""

    rules: Mapping[str, ProjectionRule] = field(default_factory=dict)
    """Rule of each projection that is sparse, by its name."""
    gate: GateRule | None = None
    rotations: Mapping[str, Rotation] = field(default_factory=dict)
    """Basis of each site that has one, by its name."""
    heads: HeadRule | None = None
    signs: SignRule | None = None
    proxies: ProxyRule | None = None
    router: NeuronRouter | None = None

    @property
    def chooses_neurons(self) -> bool:
        """Whether a neuron is left out as a whole: its row of up and its column of down at once."""
        return any(part is not None for part in (self.gate, self.signs, self.proxies, self.router))

    def of(self, projection: str) -> ProjectionRule | None:
        """The rule of a projection, None where it is dense."""
        return self.rules.get(projection)

    def bias(self, widths: Mapping[str, int], own: Tensor | None = None) -> Tensor | None:
        """(sum of widths,) float32 that is added to projections beside each other for a sparse token.

        widths: outputs of each by its name; own: (sum of widths,) biases of the model itself. None: there are
        none.
        """
        given = {name: rule.bias for name in widths if (rule := self.of(name)) and rule.bias is not None}
        if not given:
            return None if own is None else own.float()
        device = next(iter(given.values())).device
        parts = [
            given[name].float() if name in given else torch.zeros(width, dtype=torch.float32, device=device)
            for name, width in widths.items()
        ]
        return torch.cat(parts) + (0.0 if own is None else own.float())

    def without(self, projections: Collection[str]) -> BlockPlan:
        """The plan with these projections dense; a gate's neurons go with up."""
        rules = {name: rule for name, rule in self.rules.items() if name not in projections}
        dense = "up" in projections
        neurons = {"gate": self.gate, "signs": self.signs, "proxies": self.proxies, "router": self.router}
        return replace(self, rules=rules, **(dict.fromkeys(neurons) if dense else neurons))

    def misfit(self, shapes: Mapping[str, tuple[int, int]]) -> str | None:
        """What does not fit a block of projections of these (out, in), or excludes each other; else None."""
        for projection, rule in self.rules.items():
            if projection not in shapes:
                return f"it has no projection {projection}, which has a rule"
            if problem := rule.misfit(shapes[projection]):
                return f"{projection}: {problem}"
        problem = None if self.gate is None else self._gate_misfit(self.gate, shapes)
        deciding = {
            "predicts zeros by signs": self.signs,
            "chooses neurons by proxies": self.proxies,
            "chooses neurons by a router": self.router,
        }
        for what, part in deciding.items():
            if part is not None and not problem:
                problem = self._clash(what, part) or part.misfit(shapes)
        for site, rotation in self.rotations.items():
            inner = next((shapes[name][1] for name in SITES.get(site, ()) if name in shapes), None)
            wrong = "there is no such site" if inner is None else rotation.misfit(inner)
            if wrong and not problem:
                problem = f"{site}: {wrong}"
        if problem:
            return problem
        if self.heads is not None and "attention_input" in self.rotations:
            return "its router of heads reads what q, k and v read, which is in a rotated basis; take one"
        return None if self.heads is None else self.heads.misfit(shapes)

    def _gate_misfit(self, gate: GateRule, shapes: Mapping[str, tuple[int, int]]) -> str | None:
        if clashing := sorted(self.rules.keys() & {"up", "down"}):
            return f"it has thresholds on its gate and on {', '.join(clashing)}; take one"
        found, expected = tuple(gate.thresholds.shape), shapes.get("gate", (0, 0))[:1]
        if found != expected:
            return f"it has {found} gate thresholds, expected {expected}"
        return None

    def _clash(self, what: str, part: SignRule | ProxyRule | NeuronRouter) -> str | None:
        """What else decides on the neurons of the same block; None where nothing does."""
        others = sorted(self.rules.keys() & {"gate", "up", "down"}) + (["the gate"] if self.gate else [])
        choosing = {"signs": self.signs, "proxies": self.proxies, "a router": self.router}
        others += [name for name, other in choosing.items() if other is not None and part is not other]
        if others or "mlp_input" in self.rotations:
            return f"it {what} and has {', '.join(others) or 'a basis'} of its own; take one"
        return None

    def mechanisms(self) -> Counter[Mechanism]:
        """What the block's plan is made of, and the weights that each reads for every token besides."""
        found: Counter[Mechanism] = Counter()
        others = (self.gate, self.heads, self.signs, self.proxies, self.router)
        for part in (*self.rules.values(), *others, *self._products()):
            found.update({} if part is None else part.mechanisms())
        return found

    def _products(self) -> list[Rotation]:
        """Rotations that are dense products of their own.

        Sites with one basis share theirs: the residual stream stays in it throughout the block. Where norms
        keep their gains it cannot, as gains act on the channels of the old basis.
        """
        different: list[Rotation] = []
        for rotation in self.rotations.values():
            alike = (torch.equal(rotation.basis, one.basis) for one in different)
            if rotation.gains_kept or not any(alike):
                different.append(rotation)
        return different
