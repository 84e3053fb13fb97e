"""One threshold on the loss for each weight not read, for all projections of a model at once."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor

from ..calibration import Calibration
from ..passes.histogram import SMALLEST_IMPORTANCE, ChannelHistogram, narrowed
from ..projections import SITE_OF_PROJECTION, split_key

LOSS_ROUNDS = 13
"""Rounds of `narrowed`: as fine as forty bisections, in a third of the steps."""
LARGEST_OCTAVES = 100.0
"""Octaves around 0 that the threshold on the loss is searched in."""


class LossThreshold:
    """Finds the threshold τ on x_i²·h_i / out, the loss for each weight, that drops a share of all weights.

    The input channels of all projections lie behind one another in one vector: on a GPU it is the number of
    steps that costs, not their size.
    """

    def __init__(self, calibration: Calibration) -> None:
        shapes, device = calibration.shapes, calibration.device
        sites = {name: (split_key(name)[0], SITE_OF_PROJECTION[split_key(name)[1]]) for name in shapes}
        histograms = {
            (block, site): calibration.statistics[block].magnitudes[site] for block, site in sites.values()
        }
        self._histogram = ChannelHistogram.stacked(list(histograms.values()))
        widths = [histogram.channels for histogram in histograms.values()]
        first = dict(zip(histograms, accumulate(widths, initial=0), strict=False))
        self._inner = {name: inner for name, (_, inner) in shapes.items()}
        channels = [torch.arange(inner) + first[sites[name]] for name, inner in self._inner.items()]
        self._channels = torch.cat(channels).to(device)
        outs = torch.cat([torch.full((inner,), out) for out, inner in shapes.values()])
        self._out = outs.to(device).double()

    def together(self, by_key: Mapping[str, Tensor]) -> Tensor:
        """(in,) of every projection as one vector (channels,)."""
        return torch.cat([by_key[name] for name in self._inner])

    def by_key(self, together: Tensor) -> dict[str, Tensor]:
        """Inverse of `together`."""
        return dict(zip(self._inner, together.split(list(self._inner.values())), strict=True))

    def thresholds(self, sensitivities: Tensor, sparsity: float) -> Tensor:
        """Thresholds t_i = √(τ·out / h_i) on |x_i|, (channels,) float32, from h (channels,) float64."""
        if sparsity == 0.0:
            return torch.zeros_like(sensitivities).float()
        at_one = 0.5 * (self._out.log2() - sensitivities.clamp_min(SMALLEST_IMPORTANCE).log2())
        weights = self._out / self._out.sum()

        def too_low(tried: Tensor) -> Tensor:
            log2_thresholds = at_one + tried[0][:, None]
            shares = self._histogram.channel_sparsities_below(log2_thresholds, self._channels)
            return (shares @ weights < sparsity)[None]

        low, high = torch.tensor([[-LARGEST_OCTAVES], [LARGEST_OCTAVES]], device=weights.device).double()
        return (at_one + narrowed(low, high, too_low, LOSS_ROUNDS)).exp2().float()

    def sparsities(self, thresholds: Tensor) -> dict[str, float]:
        """Share of each projection's weights that thresholds (channels,) drop, by key."""
        log2_thresholds = thresholds.double().log2()[None]
        shares = self._histogram.channel_sparsities_below(log2_thresholds, self._channels)
        return self.means(shares[0])

    def means(self, together: Tensor) -> dict[str, float]:
        """Mean of each projection's part of a vector (channels,), by key; fetched from the device at once."""
        parts = self.by_key(together)
        return dict(zip(parts, torch.stack([part.mean() for part in parts.values()]).tolist(), strict=True))
