"""La RoSA (arXiv 2507.01299): per-token top-k of |x| on principal axes of what enters a block's parts.

As in its code: the inputs of q, k, v, gate and up are rotated and have 0.8 of the nominal sparsity; those of o
and down stay in their own bases and have 1.2 of it. What the code adds to the diagonal of XᵀX is left out: it
changes no eigenvector.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..method.calibration import Calibration
from ..method.plan import SparsityPlan
from ..method.projections import (
    PROJECTIONS,
    decoder_blocks,
    key,
    parameter_shares,
    projections_of_site,
    split_key,
)
from ..method.provenance import SearchCost
from ..method.rotation import principal_bases
from ..method.rules import RuleBuilder, TopK
from .rotated import ROTATED_FOR, Rotated

SITES = tuple(ROTATED_FOR)
"""Sites whose inputs are rotated."""


@dataclass(frozen=True)
class LaRoSA(Rotated):
    """The ⌊(1 − s)·n⌋ largest |x_i| of each token, s by whether an input is rotated."""

    name: str = "larosa"
    one_basis: bool = True
    """One basis a block, of the attention's input, for both sites; else each site has its own."""
    gains_kept: bool = True
    """Norms keep their gains: what is rotated is x, as in the code; else x without them, and weights take them
    over, which a rotated residual stream needs."""
    rotated_share: float = 0.8
    """Sparsity of rotated inputs over the nominal one."""
    plain_share: float = 1.2
    """Sparsity of the other inputs over the nominal one."""

    @property
    def products(self) -> int:
        """See `Rotated`: an adapter between two blocks' bases, where the residual stream is what is rotated."""
        return 1 if self.one_basis and not self.gains_kept else len(SITES)

    def _shares(self) -> dict[str, float]:
        """Sparsity of each projection over the nominal one."""
        rotated = {name for site in SITES for name in projections_of_site(site)}
        return {name: self.rotated_share if name in rotated else self.plain_share for name in PROJECTIONS}

    def _block_share(self, calibration: Calibration) -> float:
        """Sparsity of a block over the nominal one: the mean of its projections', by size."""
        sizes = parameter_shares(decoder_blocks(calibration.model)[0])
        return sum(share * sizes[name] for name, share in self._shares().items())

    def reach(self, calibration: Calibration) -> float:
        """See `Rotated`: the input with the larger share is then dropped whole."""
        return self._block_share(calibration) / max(self._shares().values())

    def _plan(self, calibration: Calibration, sparsity: float, cost: SearchCost) -> SparsityPlan:
        bases = {}
        if sparsity > 0.0:  # at 0 nothing is dropped in any basis
            with cost.stage("rotation"):
                bases = self._bases(calibration)
        channels = sparsity + self.rotation_share(calibration, sparsity)
        nominal = channels / self._block_share(calibration)
        shares, shapes = self._shares(), calibration.shapes
        sparsities = {name: nominal * shares[split_key(name)[1]] for name in shapes}
        plan = RuleBuilder(calibration, TopK(), dict.fromkeys(shapes, 0.0)).plan(sparsities, nominal=nominal)
        return replace(plan, rotations=bases, gains_kept=self.gains_kept and bool(bases))

    def _bases(self, calibration: Calibration) -> dict[str, Tensor]:
        if not self.one_basis:
            return principal_bases(calibration, SITES, self.gains_kept)
        of_attention = principal_bases(calibration, SITES[:1], self.gains_kept)
        return {key(split_key(name)[0], site): basis for name, basis in of_attention.items() for site in SITES}
