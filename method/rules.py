"""Rules from sparsities: score × mask rule, for one projection or for many candidates at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from .calibration import Calibration
from .histogram import ChannelHistogram
from .plan import ProjectionRule, SparsityPlan
from .projections import SITE_OF_PROJECTION, split_key
from .provenance import PlanProvenance
from .score import channel_weights


class MaskRule(Protocol):
    """How scores become a mask."""

    def candidates(self, histogram: ChannelHistogram, weights: Tensor, sparsities: Tensor) -> ProjectionRule:
        """A rule with a leading candidate dimension.

        weights: (in,) or (candidates, in) weights of the score; sparsities: (candidates,) on the CPU.
        """


class StaticThreshold:
    """One threshold on the score for all tokens: the calibration quantile. A token's sparsity varies."""

    def candidates(self, histogram: ChannelHistogram, weights: Tensor, sparsities: Tensor) -> ProjectionRule:
        """See `MaskRule`."""
        return ProjectionRule(thresholds=histogram.thresholds(weights, sparsities)[:, None])


class TopK:
    """The k = ⌊n·(1 − s)⌋ highest scores of each token (WINA, arXiv 2505.19427, eq. 3)."""

    def candidates(self, histogram: ChannelHistogram, weights: Tensor, sparsities: Tensor) -> ProjectionRule:
        """See `MaskRule`."""
        if weights.ndim == 2:
            weights = weights[:, None]
        # The addition keeps 0.3 · 10 at 3 whatever the rounding of the product is. k stays on the CPU, where
        # looking at it is no wait for the GPU.
        k = (histogram.channels * (1.0 - sparsities.double()) + 1e-9).floor().long()
        return ProjectionRule(top_k=k[:, None, None], weights=weights)


def for_rows(rule: ProjectionRule, rows: int) -> ProjectionRule:
    """Repeat each candidate for its `rows` sequences; rules with one candidate broadcast as they are."""

    def repeat(value: Tensor | int | None) -> Tensor | int | None:
        shared = not isinstance(value, Tensor) or value.ndim < 3 or value.shape[0] == 1
        return value if shared else value.repeat_interleave(rows, dim=0)

    return replace(
        rule, thresholds=repeat(rule.thresholds), top_k=repeat(rule.top_k), weights=repeat(rule.weights)
    )


def select(rule: ProjectionRule, index: Tensor) -> ProjectionRule:
    """The candidates at `index` (candidates,) of a rule that holds several."""

    def pick(value: Tensor | int | None) -> Tensor | int | None:
        return value[index.to(value.device)] if isinstance(value, Tensor) and value.ndim == 3 else value

    return replace(rule, thresholds=pick(rule.thresholds), top_k=pick(rule.top_k), weights=pick(rule.weights))


def final(rule: ProjectionRule) -> ProjectionRule:
    """A rule with one candidate as it is stored in a plan."""
    if rule.thresholds is not None:
        return replace(rule, thresholds=rule.thresholds[0, 0])
    weights = rule.weights if rule.weights.ndim == 1 else rule.weights[0, 0]
    return replace(rule, top_k=int(rule.top_k.item()), weights=weights)


@dataclass
class RuleBuilder:
    """Score × mask rule on one calibration: turns projection sparsities into rules."""

    calibration: Calibration
    mask: MaskRule
    alphas: Mapping[str, float]
    """Exponent α of the score of every projection, by key."""
    norm_order: int = 2
    """Order of the column norms in the score."""
    _known: dict[tuple[str, float], ProjectionRule] = field(default_factory=dict, init=False, repr=False)

    def histogram(self, name: str) -> ChannelHistogram:
        """Magnitudes of a projection's input."""
        block, projection = split_key(name)
        return self.calibration.statistics[block].magnitudes[SITE_OF_PROJECTION[projection]]

    def candidates(self, name: str, sparsities: Tensor, alpha: float | Tensor | None = None) -> ProjectionRule:
        """Rules of one projection for candidate sparsities (candidates,), at its own α or at another."""
        alpha = self.alphas[name] if alpha is None else alpha
        weights = channel_weights(self.calibration.norms_of(self.norm_order)[name], alpha)
        return self.mask.candidates(self.histogram(name), weights, sparsities)

    def one(self, name: str, sparsity: float) -> ProjectionRule:
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
            rules={name: final(self.one(name, sparsity)) for name, sparsity in sparsities.items()},
            provenance=PlanProvenance(details=found),
        )
