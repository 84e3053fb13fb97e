"""The CPU kernels in plain torch, for machines without a compiler. Arguments are checked in `cpu_gemv`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..reference import dropped_by_threshold, dropped_by_top_k
from .kept_channels import KeptChannels
from .weights import AnyWeight


class TorchKernels:
    """The results of the compiled kernels up to rounding, without their speed: kept rows are copied first."""

    name = "torch"

    def compact_by_threshold(self, x: Tensor, thresholds: Tensor, kept: KeptChannels) -> None:
        """Fill `kept` with the channels where |x| ≥ thresholds."""
        x = x.float()
        _fill(kept, x, dropped_by_threshold(x, thresholds))

    def compact_by_top_k(self, x: Tensor, weights: Tensor, k: int, kept: KeptChannels) -> None:
        """Fill `kept` with each row's top k of |x|·weights."""
        x = x.float()
        _fill(kept, x, dropped_by_top_k(x, weights, k))

    def gather_gemv(self, kept: KeptChannels, weight: AnyWeight, out: Tensor, by_integers: bool) -> None:
        """out[b] = the sum over kept channels of value · row of the weight, in float32 in any case."""
        torch.mm(kept.values.t(), _rows(weight, kept.channels), out=out)

    def row_dots(self, x: Tensor, weight_rows: Tensor, kept: KeptChannels, out: Tensor) -> None:
        """out[i, b] = kept row i · x[b]."""
        torch.mm(weight_rows.index_select(0, kept.channels).float(), x.float().t(), out=out)


def _rows(weight: AnyWeight, channels: Tensor) -> Tensor:
    """Some rows of a weight, (count, out) float32."""
    if isinstance(weight, Tensor):
        return weight.index_select(0, channels).float()
    by_row = {name: value for name, value in weight.tensors().items() if name != "column_scales"}
    return replace(weight, **{name: value[channels] for name, value in by_row.items()}).dequantised()


def _fill(kept: KeptChannels, x: Tensor, dropped: Tensor) -> None:
    channels = dropped.all(0).logical_not_().nonzero()[:, 0]
    kept.count = len(channels)
    kept.channels.copy_(channels)
    kept.values.copy_(x.masked_fill(dropped, 0.0)[:, channels].t())
    kept.row_counts.copy_(dropped.logical_not().sum(1))
