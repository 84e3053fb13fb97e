"""Low-rank path of the projections that have one (R-Sparse, arXiv 2504.19449): what dropped channels add."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import KernelError
from ..plan.projection_rule import ProjectionRule
from ..triton.channel_lists import ChannelLists
from ..triton.gemv import Activation, Columns, gemv
from ..triton.gemv_tiles import Tile, Workspace
from ..triton.launch import blocks_of
from .buffers import Buffers

RANK_STEP = 16
"""Ranks are padded to multiples of this, so that rows of the factors start at aligned addresses."""


@dataclass(frozen=True)
class LowRankPath:
    """left · (right · dropped) for a site's projections with factors, added to its products."""

    dropped: ChannelLists
    right: Tensor
    """(in, lists · padded rank)"""
    right_columns: Columns
    inner: ChannelLists
    """The products with right, as lists of every rank of each projection."""
    left: Tensor
    """(padded rank, out of the projections side by side)"""
    left_columns: Columns
    addend: Tensor
    """(batch, out of the whole site) float32."""

    def run(self, right_tile: Tile, left_tile: Tile, workspace: Workspace, pdl: bool) -> None:
        """Fill the addend from the lists of dropped channels."""
        gemv(
            Activation(self.dropped),
            self.right,
            self.right_columns,
            self.inner.values,
            right_tile,
            workspace,
            pdl=pdl,
        )
        gemv(Activation(self.inner), self.left, self.left_columns, self.addend, left_tile, workspace, pdl=pdl)


def low_rank_path(
    name: str,
    widths: dict[str, int],
    projections: list[str],
    rules: dict[str, ProjectionRule],
    lists: ChannelLists,
    buffers: Buffers,
) -> LowRankPath:
    """The path of the projections with factors, behind those of a site's lists that hold what they drop.

    widths: of all of the site's projections. Raises KernelError for factors that do not fit.
    """
    ranks = [rules[projection].left.shape[1] for projection in projections]
    padded = blocks_of(max(ranks), RANK_STEP) * RANK_STEP
    right = torch.zeros(lists.channels, len(ranks) * padded, dtype=buffers.dtype, device=buffers.device)
    out = [widths[projection] for projection in projections]
    left = torch.zeros(padded, sum(out), dtype=buffers.dtype, device=buffers.device)
    begins = [sum(out[:place]) for place in range(len(out))]
    for place, (projection, rank) in enumerate(zip(projections, ranks, strict=True)):
        rule = rules[projection]
        if rule.left.shape[0] != widths[projection]:
            raise KernelError(f"{projection}: the low-rank factor has {rule.left.shape[0]} rows")
        right[:, place * padded : place * padded + rank] = rule.right.T
        left[:rank, begins[place] : begins[place] + out[place]] = rule.left.T
    inner = _every_rank(ranks, padded, buffers)
    names = list(widths)
    starts = [sum(list(widths.values())[: names.index(projection)]) for projection in projections]
    steps = [place * buffers.batch * inner.capacity for place in range(len(ranks))]
    return LowRankPath(
        dropped=lists.of(len(widths), lists.projections),
        right=right,
        right_columns=Columns(tuple(place * padded for place in range(len(ranks))), tuple(ranks), tuple(steps)),
        inner=inner,
        left=left,
        left_columns=Columns(tuple(begins), tuple(out), tuple(starts)),
        # Columns of projections without factors stay 0, so the buffer is shared by blocks with the same ones.
        addend=buffers.sums(("addend", name, *projections), buffers.batch, sum(widths.values())),
    )


def _every_rank(ranks: list[int], padded: int, buffers: Buffers) -> ChannelLists:
    """Lists of every rank below each projection's own, whose values the product with right fills in."""
    block = min(64, padded)
    inner = ChannelLists.empty(len(ranks), buffers.batch, padded, block, buffers.device)
    inner.index.copy_(torch.arange(inner.capacity).expand_as(inner.index))
    left_over = torch.tensor(ranks)[:, None] - torch.arange(inner.blocks) * block
    inner.counts.copy_(left_over.clamp(0, block))
    return inner
