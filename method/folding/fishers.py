"""Fisher matrices of what projections read, and the sensitivities of channels in any folded basis from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ...kernels.plan.bases import FoldedBases
from ..projections import split_key


@dataclass(frozen=True, eq=False)
class Fishers:
    """E[g gᵀ] of the gradient g of the label's log-probability at what projections read, by key.

    The diagonal in a basis is what `channel_sensitivities` measures where the weights are in that basis, for
    the same sequences and labels: no gradients are needed again.
    """

    stream: Mapping[str, Tensor]
    """(hidden, hidden) of the projections that read what a norm makes, its gains counted with them."""
    heads: Mapping[str, Tensor]
    """(kv heads, heads of q that share one, head_dim, head_dim) of o."""
    down: Mapping[str, Tensor]
    """(in,) of down, the diagonal: no basis turns its channels."""

    def sensitivities(self, bases: FoldedBases) -> dict[str, Tensor]:
        """E[(Wᵀg)_i²] of every projection's input channels in these bases, by key, (in,) float64."""
        stream = {name: _diagonal(matrix, bases.stream) for name, matrix in self.stream.items()}
        heads = {
            name: _diagonal(matrices, bases.values[split_key(name)[0]][:, None]).flatten()
            for name, matrices in self.heads.items()
        }
        return {**stream, **heads, **{name: diagonal.double() for name, diagonal in self.down.items()}}


def _diagonal(matrices: Tensor, basis: Tensor | None) -> Tensor:
    """Diagonals (..., channels) float64 of matrices (..., channels, channels) in a basis."""
    exact = matrices.double()
    if basis is None:
        return exact.diagonal(dim1=-2, dim2=-1)
    turned = basis.to(exact)
    return ((exact @ turned) * turned).sum(dim=-2)
