"""A sparsity plan as runtimes read it: block by block, each with the mechanisms that it is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from .decoder import SITES
from .heads.rule import HeadRule
from .mechanism import Mechanism
from .proxies.rule import ProxyRule
from .signs.rule import SignRule

ORTHOGONAL = 1e-2
"""Largest error that a basis and its inverse leave in a vector of unit variance."""

SHARED = ("sum", "maximum")
"""Ways to score a channel for all rows of a decode step."""


@dataclass(frozen=True)
class ProjectionRule:
    """How one projection drops input channels: by static thresholds or by per-token top-k.

    Exactly one of `thresholds` and `top_k` is given. A low-rank pair adds back an approximation of what the
    dropped channels would have contributed.
    """

    thresholds: Tensor | None = None
    """(in,) float32; channel i is kept where |x_i| ≥ thresholds[i]."""
    top_k: int | None = None
    """Number of channels kept for each token."""
    bounds: tuple[int, int] | None = None
    """Fewest and most channels that a token keeps of what the thresholds say: those of the highest
    |x_i|/thresholds[i]. None: as many as reach theirs."""
    weights: Tensor | None = None
    """(in,) channel weights of the top-k score |x_i|·weights[i]."""
    shared: str | None = None
    """How the rows of a decode step share one top-k, one of SHARED: |x| of the score is their sum, or their
    maximum. None: each row has its own, which one row alone has in any case."""
    left: Tensor | None = None
    """(out, rank) factor of the low-rank path."""
    right: Tensor | None = None
    """(rank, in) factor of the low-rank path."""
    bias: Tensor | None = None
    """(out,) added to the output of sparse tokens, for what they lack on the average."""

    def __post_init__(self) -> None:
        if (self.thresholds is None) == (self.top_k is None):
            raise ValueError("a projection rule needs either thresholds or top_k")
        if (self.top_k is None) != (self.weights is None):
            raise ValueError("a top-k rule needs the channel weights of its score")
        if self.shared is not None and (self.top_k is None or self.shared not in SHARED):
            raise ValueError(
                f"a mask is shared by top-k over the {' or the '.join(SHARED)}, not {self.shared!r}"
            )
        if self.bounds is not None and self.thresholds is None:
            raise ValueError("bounds on the channels kept are of thresholds; top-k says how many by itself")
        if (self.left is None) != (self.right is None):
            raise ValueError("a low-rank path needs both of its factors")

    @property
    def rank(self) -> int:
        """Rank of the low-rank path, 0 where there is none."""
        return 0 if self.left is None else self.left.shape[-1]

    def mechanisms(self) -> dict[Mechanism, int]:
        """What the rule is made of, and the weights that each reads for every token beside kept channels."""
        mask = Mechanism.THRESHOLD if self.top_k is None else Mechanism.TOP_K
        if self.shared is not None:
            mask = Mechanism.SHARED_TOP_K
        if self.bounds is not None:
            mask = Mechanism.BOUNDED
        found = {mask: 0}
        if self.left is not None:
            found[Mechanism.LOW_RANK] = self.left.numel() + self.right.numel()
        if self.bias is not None:
            found[Mechanism.BIAS] = self.bias.numel()
        return found

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """What does not fit a projection of this (out, in); None where all does."""
        out, inner = shape
        k = self.top_k
        if k is not None and (isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= inner):
            return f"top_k is {k!r}, not a number of its {inner} channels"
        if (bounds := self.bounds) is not None and not (
            all(type(bound) is int for bound in bounds) and 0 <= bounds[0] <= bounds[1] <= inner
        ):
            return f"bounds {list(bounds)} are not two numbers of its {inner} channels in order"
        expected = {
            "thresholds": (inner,),
            "weights": (inner,),
            "left": (out, self.rank),
            "right": (self.rank, inner),
            "bias": (out,),
        }
        for part, wanted in expected.items():
            value = getattr(self, part)
            if value is not None and tuple(value.shape) != wanted:
                return f"{part} has shape {tuple(value.shape)}, which does not fit {shape}"
        return None

    def to(self, device: torch.device | str, factors: torch.dtype | None = None) -> ProjectionRule:
        """The same rule on `device`, as it is, or with factors of this dtype and all else in float32."""
        mask = None if factors is None else torch.float32

        def moved(value: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
            return None if value is None else value.to(device, dtype).contiguous()

        return replace(
            self,
            thresholds=moved(self.thresholds, mask),
            weights=moved(self.weights, mask),
            left=moved(self.left, factors),
            right=moved(self.right, factors),
            bias=moved(self.bias, factors),
        )


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
class Rotation:
    """A basis in which the projections of a site read its activations; their rules are on the new channels."""

    basis: Tensor
    """(hidden, hidden), orthogonal."""
    gains_kept: bool = False
    """Whether activations have the norm's gains when they are rotated; else the weights take these over."""

    def misfit(self, hidden: int) -> str | None:
        """What is wrong with a basis for this many channels; None where it fits and is orthogonal."""
        if self.basis.shape != (hidden, hidden):
            return f"a basis has shape {tuple(self.basis.shape)}, which does not fit {hidden} channels"
        basis = self.basis.float()
        # A few vectors that come back tell as much as the product with its own transpose, at a fraction of it.
        drawn = torch.randn(4, hidden, generator=torch.Generator().manual_seed(0)).to(basis.device)
        if not torch.allclose(drawn @ basis @ basis.T, drawn, atol=ORTHOGONAL):
            return "a basis is not orthogonal"
        return None

    def mechanisms(self) -> dict[Mechanism, int]:
        """See `ProjectionRule`."""
        return {Mechanism.ROTATION: self.basis.numel()}


@dataclass(frozen=True, eq=False)
class FoldedBases:
    """Bases that are folded into a model's weights, which computes the same function on other channels.

    Nothing is read for them. Rules of the same plan are on the new channels.
    """

    stream: Tensor | None = None
    """(hidden, hidden) orthogonal basis of the residual stream; None: it stays as it is."""
    values: Mapping[int, Tensor] = field(default_factory=dict)
    """(kv heads, head_dim, head_dim) orthogonal bases of the heads of v, by block."""

    def misfit(self, shapes: Mapping[str, tuple[int, int]]) -> str | None:
        """What does not fit a model of these (out, in) by key, or is not orthogonal; None where all fits."""
        hidden = shapes.get("0.q", (0, 0))[1]
        if self.stream is not None and (problem := Rotation(self.stream).misfit(hidden)):
            return problem
        for block, bases in self.values.items():
            out = shapes.get(f"{block}.v", (0, 0))[0]
            if bases.ndim != 3 or bases.shape[1] != bases.shape[2] or bases.shape[:2].numel() != out:
                return f"block {block}: bases of values have shape {tuple(bases.shape)}, for {out} channels"
            for basis in bases:
                if problem := Rotation(basis).misfit(bases.shape[1]):
                    return problem
        return None


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

    def of(self, projection: str) -> ProjectionRule | None:
        """The rule of a projection, None where it is dense."""
        return self.rules.get(projection)

    def without(self, projections: Collection[str]) -> BlockPlan:
        """The plan with these projections dense; a gate's neurons go with up."""
        rules = {name: rule for name, rule in self.rules.items() if name not in projections}
        dense = "up" in projections
        neurons = {"gate": self.gate, "signs": self.signs, "proxies": self.proxies}
        return replace(self, rules=rules, **(dict.fromkeys(neurons) if dense else neurons))

    def misfit(self, shapes: Mapping[str, tuple[int, int]]) -> str | None:
        """What does not fit a block of projections of these (out, in), or excludes each other; else None."""
        for projection, rule in self.rules.items():
            if projection not in shapes:
                return f"it has no projection {projection}, which has a rule"
            if problem := rule.misfit(shapes[projection]):
                return f"{projection}: {problem}"
        problem = None if self.gate is None else self._gate_misfit(self.gate, shapes)
        deciding = {"predicts zeros by signs": self.signs, "chooses neurons by proxies": self.proxies}
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

    def _clash(self, what: str, part: SignRule | ProxyRule) -> str | None:
        """What else decides on the neurons of the same block; None where nothing does."""
        others = sorted(self.rules.keys() & {"gate", "up", "down"}) + (["the gate"] if self.gate else [])
        others += ["signs"] if self.signs is not None and part is not self.signs else []
        if others or "mlp_input" in self.rotations:
            return f"it {what} and has {', '.join(others) or 'a basis'} of its own; take one"
        return None

    def mechanisms(self) -> Counter[Mechanism]:
        """What the block's plan is made of, and the weights that each reads for every token besides."""
        found: Counter[Mechanism] = Counter()
        others = [part for part in (self.gate, self.heads, self.signs, self.proxies) if part is not None]
        for part in (*self.rules.values(), *others, *self._products()):
            found.update(part.mechanisms())
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


class Plan(Protocol):
    """Interface of a whole plan."""

    shapes: dict[str, tuple[int, int]]
    """(out, in) of every block projection of the model that it was made for, by key."""
    quantisation: str | None
    """Quantised weights that it was made on; None: the model's own."""
    folded: FoldedBases | None
    """Bases in the weights that its rules are on; None: the model's own."""

    def block_plans(self) -> tuple[BlockPlan, ...]:
        """The plan of every block, in order."""
        ...

    def expected_sparsity(self, name: str) -> float | None:
        """Share of its channels that a token is expected to drop in this projection; None: nobody knows."""
        ...


def of_another_model(shapes: Mapping[str, tuple[int, int]], model: Mapping[str, tuple[int, int]]) -> str | None:
    """What tells a plan's projections (out, in) from a model's, for messages; None where they are the same."""
    if dict(shapes) == dict(model):
        return None
    first, of_model = (next(iter(sizes.items()), None) for sizes in (shapes, model))
    return (
        f"this plan is for another model: it has {len(shapes)} projections, first {first}; "
        f"the model has {len(model)}, first {of_model}"
    )
