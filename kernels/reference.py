"""Reference in plain torch of every kernel: the ground truth of tests and of evaluation.

NaN and infinity: both are always kept (no comparison with NaN is true), so that a broken activation shows in
the output instead of being zeroed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def dropped_by_threshold(x: Tensor, thresholds: Tensor) -> Tensor:
    """Channels dropped by a static threshold, |x| < t; a threshold of 0 drops none.

    x: (..., channels); thresholds: broadcastable to x. Returns bool of x's shape.
    """
    return x.abs() < thresholds


def kept_by_threshold(x: Tensor, thresholds: Tensor) -> Tensor:
    """1 where a static threshold keeps a channel, 0 where it drops it, in x's type; not-a-number gives 0.

    The same as `dropped_by_threshold` says, made as a factor for x: on a CPU, numbers pass through vector
    instructions where truth values do not. As a factor, 0 leaves what is not a number as it is.
    """
    return x.detach().abs().ge_(thresholds)


def dropped_by_top_k(x: Tensor, weights: Tensor, k: int | Tensor) -> Tensor:
    """Channels dropped by per-token top-k of |x|·w; channels that tie with the k-th are all kept.

    A score of zero is never kept, however large k is: its column adds nothing, and is not read. Scores below
    the smallest normal number count as zero, which some processors make of them.

    x: (..., channels); weights: (channels,); k: an int, or integers that broadcast to (..., 1), best on
    the CPU: they are looked at.
    """
    scores = x.abs() * weights
    if isinstance(k, int):
        return scores < _smallest_kept(scores, k)
    values = k.unique().tolist()  # candidates of a search differ in few values of k
    k = k.expand(*x.shape[:-1], 1)[..., 0]
    smallest = torch.empty_like(scores[..., :1])
    for value in values:
        rows = k == value
        smallest[rows] = _smallest_kept(scores[rows], value)
    return scores < smallest


def dropped_by_shared_top_k(x: Tensor, weights: Tensor, k: int, combined: str, voting: Tensor) -> Tensor:
    """Channels dropped by one top-k of |x|·w for all rows of a decode step, |x| their sum or their maximum.

    x: (rows, ..., channels); combined: `sum` or `maximum`; voting: (rows, ...) bool, rows that have a say.
    Ties and zeros as in `dropped_by_top_k`, which this is for one row. Returns bool (1, ..., channels).
    """
    magnitudes = x.abs().to(torch.promote_types(x.dtype, torch.float32)) * voting[..., None]
    together = magnitudes.sum(0, keepdim=True) if combined == "sum" else magnitudes.amax(0, keepdim=True)
    return dropped_by_top_k(together, weights, k)


def dropped_within_bounds(x: Tensor, thresholds: Tensor, fewest: int, most: int) -> Tensor:
    """Channels dropped by a static threshold, but for those that make up for fewer kept ones than `fewest`.

    Beyond `most` kept ones those of the lowest |x|/t are dropped, too; ties and zeros as in `dropped_by_top_k`.
    x: (..., channels); thresholds: (channels,). Returns bool of x's shape.
    """
    scores = x.abs() / thresholds.clamp_min(torch.finfo(thresholds.dtype).smallest_normal)
    proposed = _smallest_kept(scores, fewest).clamp_max(1.0)
    return scores < torch.maximum(proposed, _smallest_kept(scores, most))


def _smallest_kept(scores: Tensor, k: int) -> Tensor:
    """The k-th highest score but no zero, (..., 1): the smallest normal number for all, infinity for none."""
    positive = torch.finfo(scores.dtype).smallest_normal
    if k >= scores.shape[-1]:
        return torch.full_like(scores[..., :1], positive)
    if k == 0:
        return torch.full_like(scores[..., :1], torch.inf)
    position = scores.shape[-1] - k
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        # The same value ten times sooner: numpy selects with vector instructions, torch does not.
        found = np.partition(scores.detach().numpy(), position, axis=-1)[..., position : position + 1]
        return torch.from_numpy(found).clamp_min(positive)
    return scores.kthvalue(position + 1, dim=-1, keepdim=True).values.clamp_min(positive)


def low_rank_product(dropped: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Low-rank path for dropped channels: dropped · (left · right)ᵀ (R-Sparse, arXiv 2504.19449, eq. 5).

    dropped: (..., in) with zeros at the kept channels; left: (out, rank); right: (rank, in).
    """
    return torch.nn.functional.linear(torch.nn.functional.linear(dropped, right), left)
