"""Magnitudes of each channel as histograms: one pass gives every threshold at every sparsity and every α."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ...kernels.triton.statistics.magnitudes import count_magnitudes

LOWEST_OCTAVE, HIGHEST_OCTAVE = -22, 12
BINS_PER_OCTAVE = 16
BINS = (HIGHEST_OCTAVE - LOWEST_OCTAVE) * BINS_PER_OCTAVE
SMALLEST_IMPORTANCE = 1e-30
"""So that a channel that nothing depends on has a finite, if huge, threshold."""
PARTS, ROUNDS = 8, 9
"""The search of a threshold divides its range by 8 nine times, which leaves a millionth of an octave. Halving
it would take three times as many steps, and on a GPU it is their number that costs."""


def narrowed(low: Tensor, high: Tensor, too_low: Callable[[Tensor], Tensor], rounds: int) -> Tensor:
    """The least values that are not too low, within (high - low) / PARTS^rounds above them.

    low, high: (candidates,) float64 bounds, of which the first is too low and the second not. too_low: values
    (candidates, PARTS - 1) → the same, bool; once true of a value it is true of all below.
    """
    inside = torch.arange(1, PARTS, device=low.device).double() / PARTS
    for _ in range(rounds):
        tried = torch.lerp(low[:, None], high[:, None], inside)
        width = (high - low) / PARTS
        low = low + too_low(tried).sum(dim=1) * width
        high = low + width
    return high


class ChannelHistogram:
    """Streaming histograms of log2|x_i|, one for each channel of an activation site.

    A score |x_i|·w_i only shifts channel i's histogram by log2 w_i, so the quantile of the scores is known
    for every weighting without seeing the activations again. Values outside 2^-22 … 2^12 count at the ends.
    """

    def __init__(self, channels: int, device: torch.device | str) -> None:
        self.counts = torch.zeros(channels, BINS, dtype=torch.int32, device=device)
        self.not_finite = torch.zeros((), dtype=torch.int64, device=device)
        """Values so far that were infinite or not a number; they count at the upper end."""

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.counts.shape[0]

    @property
    def zeros(self) -> float:
        """Share of all activations that are zero, as far as values below 2^-22 are told from it."""
        return (self.counts[:, 0].sum() / self.counts.sum()).item()

    def update(self, x: Tensor) -> None:
        """Add activations (..., channels)."""
        self.__dict__.pop("_running", None)
        if x.is_cuda:
            count_magnitudes(x.detach(), self.counts, self.not_finite, LOWEST_OCTAVE, BINS_PER_OCTAVE)
            return
        magnitudes = x.detach().reshape(-1, self.channels).float().abs()
        self.not_finite += magnitudes.isfinite().logical_not_().sum()
        bins = magnitudes.log2_().sub_(LOWEST_OCTAVE).mul_(BINS_PER_OCTAVE)
        bins = bins.nan_to_num_(nan=BINS - 1, neginf=0).clamp_(0, BINS - 1).long()
        bins += torch.arange(self.channels, device=bins.device) * BINS
        counted = torch.bincount(bins.flatten(), minlength=self.counts.numel())
        self.counts += counted.view_as(self.counts).int()

    @classmethod
    def stacked(cls, histograms: Sequence[ChannelHistogram]) -> ChannelHistogram:
        """The channels of all, behind one another: what is asked of them is then asked once."""
        together = cls(0, histograms[0].counts.device)
        together.counts = torch.cat([histogram.counts for histogram in histograms])
        return together

    def sparsity_below(self, log2_thresholds: Tensor) -> Tensor:
        """Share of all activations with |x_i| below its channel's threshold.

        log2_thresholds: (candidates, channels). Returns (candidates,) float64.
        """
        activations = self._running[2].sum()
        return self._counted_below(log2_thresholds).sum(dim=1) / activations

    def channel_sparsities_below(self, log2_thresholds: Tensor, channels: Tensor) -> Tensor:
        """Share of each channel's activations below a threshold, for these channels, any as often as wanted.

        log2_thresholds: (candidates, channels). Returns the same, float64.
        """
        activations = self._running[2][channels]
        return self._counted_below(log2_thresholds, channels) / activations

    def _counted_below(self, log2_thresholds: Tensor, channels: Tensor | None = None) -> Tensor:
        position = ((log2_thresholds.double() - LOWEST_OCTAVE) * BINS_PER_OCTAVE).clamp(0, BINS)
        # Of infinite weights, as of a huge exponent: no place in memory, and the plan's thresholds are refused.
        position = position.nan_to_num_(nan=0.0)
        pairs, first, _ = self._running
        around = pairs[position.long() + (first if channels is None else first[channels])].double()
        # Within a bin the mass is taken as even in log magnitude.
        return torch.lerp(around[..., 0], around[..., 1], position.frac())

    @cached_property
    def _running(self) -> tuple[Tensor, Tensor, Tensor]:
        """Running counts as pairs of neighbours, (pairs, 2); each channel's first, and its total, (channels,).

        Made once: searches ask thousands of times, and on a GPU every step counts.
        """
        # Whole numbers as they are: in float64 they would take twice the memory.
        running = self.counts.cumsum(dim=1, dtype=torch.int32)
        # A 0 before the first bin, and behind the last one more, for what lies at its very end.
        running = torch.cat([torch.zeros_like(running[:, :1]), running, running[:, -1:]], dim=1)
        first = torch.arange(self.channels, device=running.device) * running.shape[1]
        return running.flatten().unfold(0, 2, 1), first, running[:, -1]

    def thresholds(self, weights: Tensor, sparsities: Tensor) -> Tensor:
        """Per-channel thresholds τ/w_i on |x_i|, τ being the `sparsity` quantile of the scores |x_i|·w_i.

        weights: (channels,) or (candidates, channels), 0 for channels that nothing depends on; sparsities:
        (candidates,) in [0, 1]. Returns (candidates, channels) float32: 0 where the sparsity is 0 (everything
        is kept), infinity where it is 1, no numbers where a weight is infinite.
        """
        log2_weights = weights.to(self.counts.device).double().clamp_min(SMALLEST_IMPORTANCE).log2()
        sparsities = sparsities.to(self.counts.device).double()
        low = torch.full_like(sparsities, LOWEST_OCTAVE) + log2_weights.amin(dim=-1)
        high = torch.full_like(sparsities, HIGHEST_OCTAVE) + log2_weights.amax(dim=-1)

        def too_low(tried: Tensor) -> Tensor:
            log2_thresholds = (tried[:, :, None] - log2_weights[..., None, :]).flatten(0, 1)
            return self.sparsity_below(log2_thresholds).view_as(tried) < sparsities[:, None]

        found = narrowed(low, high, too_low, ROUNDS)
        thresholds = (found[:, None] - log2_weights).exp2().float()
        thresholds[sparsities <= 0] = 0.0
        thresholds[sparsities >= 1] = torch.inf
        return thresholds
