"""Bases in which a plan drops channels: rotations of what sites read, and bases folded into weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .mechanism import Mechanism

ORTHOGONAL = 1e-2
"""Largest error that a basis and its inverse leave in a vector of unit variance."""


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
        drawn = torch.randn(4, hidden, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(
            basis.device
        )
        if not torch.allclose(drawn @ basis @ basis.T, drawn, atol=ORTHOGONAL):
            return "a basis is not orthogonal"
        return None

    def mechanisms(self) -> dict[Mechanism, int]:
        """See `ProjectionRule`."""
        return {Mechanism.ROTATION: self.basis.numel()}

    def same(self, other: Rotation) -> bool:
        """Whether it is made of the very same basis, in the same way."""
        return self.basis is other.basis and self.gains_kept == other.gains_kept


@dataclass(frozen=True, eq=False)
class SiteBases:
    """Rotations of a model, equal to others that are made of the very same bases."""

    rotations: Mapping[str, Rotation]
    """Rotation of each site that has one, by block and site."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SiteBases) or self.rotations.keys() != other.rotations.keys():
            return False
        return all(one.same(other.rotations[name]) for name, one in self.rotations.items())

    __hash__ = None


@dataclass(frozen=True, eq=False)
class FoldedBases:
    """Bases that are folded into a model's weights, which computes the same function on other channels.

    Nothing is read for them. Rules of the same plan are on the new channels.
    """

    stream: Tensor | None = None
    """(hidden, hidden) orthogonal basis of the residual stream; None: it stays as it is."""
    values: Mapping[int, Tensor] = field(default_factory=dict)
    """(kv heads, head_dim, head_dim) orthogonal bases of the heads of v, by block."""

    def then(self, further: FoldedBases) -> FoldedBases:
        """Bases of the model's own weights, of `further` ones that are bases of weights in these."""

        def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
            if first is None or second is None:
                return first if second is None else second
            return (first.double() @ second.to(first.device).double()).float()

        blocks = {*self.values, *further.values}
        values = {block: both(self.values.get(block), further.values.get(block)) for block in sorted(blocks)}
        return FoldedBases(both(self.stream, further.stream), values)

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
