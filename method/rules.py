"""Rules from sparsities: score × mask rule, for one projection or for many candidates at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..kernels.plan.projection_rule import SHARED
from .calibration import Calibration
from .errors import UserError
from .passes.histogram import ChannelHistogram
from .plan import SparsityPlan
from .projections import SITE_OF_PROJECTION, split_key
from .provenance import PlanProvenance
from .running.candidates import CandidateRules
from .settings import Settings

SMALLEST_WEIGHT = 1e-4
"""Clamp of c^α (WiSparse, arXiv 2602.14452, sec. 4.1), so that a zero column does not divide by zero."""
ROUNDED = 1e-3
"""Channels by which n·(1 − s) may be short of a whole number: sparsities are float32, in which 0.4 is a little
more, and of 320 channels 191.99999 would be kept. Of 30,000 channels it is short by less than this."""


def channel_weights(column_norms: Tensor, alpha: float | Tensor) -> Tensor:
    """The weight c_i^α of each channel's score |x_i|·c_i^α: α = 0 is TEAL's, 1 WINA's, by layer WiSparse's.

    column_norms: (in,); alpha: a number, or (candidates, 1). Returns (in,) or (candidates, in) float32.
    """
    return column_norms.float().pow(alpha).clamp_min(SMALLEST_WEIGHT)


@runtime_checkable
class MaskRule(Protocol):
    """How scores become a mask."""

    def candidates(self, histogram: ChannelHistogram, weights: Tensor, sparsities: Tensor) -> CandidateRules:
        """One rule for each sparsity.

        weights: (in,) or (candidates, in) weights of the score; sparsities: (candidates,) on the CPU.
        """


@dataclass(frozen=True)
class StaticThreshold(Settings):
    """One threshold on the score for all tokens: the calibration quantile. A token's sparsity varies."""

    def candidates(self, histogram: ChannelHistogram, weights: Tensor, sparsities: Tensor) -> CandidateRules:
        """See `MaskRule`."""
        return CandidateRules(thresholds=histogram.thresholds(weights, sparsities)[:, None])


@dataclass(frozen=True)
class TopK(Settings):
    """The k = ⌊n·(1 − s)⌋ highest scores of each token, but no zero (WINA, arXiv 2505.19427, eq. 3)."""

    def candidates(self, histogram: ChannelHistogram, weights: Tensor, sparsities: Tensor) -> CandidateRules:
        """See `MaskRule`."""
        if weights.ndim == 2:
            weights = weights[:, None]
        # k stays on the CPU, where looking at it is no wait for the GPU.
        k = (histogram.channels * (1.0 - sparsities.double()) + ROUNDED).floor().long()
        return CandidateRules(top_k=k[:, None, None], weights=weights)


@dataclass(frozen=True)
class SharedTopK(TopK):
    """One top-k for all rows of a decode step, over their |x| combined: a batch reads what one row reads.

    One row alone has the top-k of `TopK`, and so has every row while a method searches.
    """

    combine: str = "sum"
    """How |x| of the rows is combined: `sum` or `maximum`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.combine not in SHARED:
            raise UserError(f"method.mask.combine: {self.combine!r} is none of {', '.join(SHARED)}")

    def candidates(self, histogram: ChannelHistogram, weights: Tensor, sparsities: Tensor) -> CandidateRules:
        """See `MaskRule`."""
        return replace(super().candidates(histogram, weights, sparsities), shared=self.combine)


@dataclass
class RuleBuilder:
    """Score × mask rule on one calibration: turns projection sparsities into rules."""

    calibration: Calibration
    mask: MaskRule
    alphas: Mapping[str, float]
    """Exponent α of the score of every projection, by key."""
    norm_order: int = 2
    """Order of the column norms in the score."""
    _known: dict[tuple[str, float], CandidateRules] = field(default_factory=dict, init=False, repr=False)

    def histogram(self, name: str) -> ChannelHistogram:
        """Magnitudes of a projection's input."""
        block, projection = split_key(name)
        return self.calibration.statistics[block].magnitudes[SITE_OF_PROJECTION[projection]]

    def candidates(self, name: str, sparsities: Tensor, alpha: float | Tensor | None = None) -> CandidateRules:
        """Rules of one projection for candidate sparsities (candidates,), at its own α or at another."""
        alpha = self.alphas[name] if alpha is None else alpha
        weights = channel_weights(self.calibration.norms_of(self.norm_order)[name], alpha)
        return self.mask.candidates(self.histogram(name), weights, sparsities)

    def one(self, name: str, sparsity: float) -> CandidateRules:
        """The rule of one projection at one sparsity, with one candidate; remembered."""
        if (name, sparsity) not in self._known:
            self._known[name, sparsity] = self.candidates(name, torch.tensor([sparsity]))
        return self._known[name, sparsity]

    def plan(self, sparsities: Mapping[str, float], **details: object) -> SparsityPlan:
        """The finished plan for given sparsities of the projections, by key.

        details: what else its provenance shall say, JSON-able.
        """
        found = {"sparsities": dict(sparsities), "alphas": dict(self.alphas), **details}
        return SparsityPlan(
            shapes=self.calibration.shapes,
            rules={name: self.one(name, sparsity).only() for name, sparsity in sparsities.items()},
            provenance=PlanProvenance(details=found),
        )
