"""Sites of a block, each with what it hands to the projections that read it: x, or lists, and a low-rank path.

Buffers of the same kind are shared by all blocks: launches follow each other.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..block_rules import BlockRules
from ..errors import KernelError
from ..triton.channel_lists import ChannelLists
from ..triton.compact import ListRules
from ..triton.gemv import Activation, Columns, gemv
from ..triton.gemv_tiles import Tile, Workspace
from ..triton.launch import blocks_of
from ..triton.select import select_smallest

B = TypeVar("B")
RANK_STEP = 16
"""Ranks are padded to multiples of this, so that rows of the factors start at aligned addresses."""


class Buffers:
    """Tensors and lists by what they are for, made at first use."""

    def __init__(self, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        self.batch = batch
        self.dtype = dtype
        self.device = device
        self.workspace = Workspace(device)
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, made: B) -> B:
        """The first object that was made for this key."""
        return self._made.setdefault(key, made)

    def x(self, name: str, channels: int) -> Tensor:
        """(batch, channels) activation in the dtype of the weights."""
        return self.once(("x", name), torch.zeros(self.batch, channels, dtype=self.dtype, device=self.device))

    def sums(self, name: Hashable, *shape: int) -> Tensor:
        """float32 tensor of this shape, zeros at first."""
        return self.once(("sums", name, shape), torch.zeros(shape, device=self.device))

    def lists(self, name: str, projections: int, channels: int, block: int) -> ChannelLists:
        """Lists of one site."""
        key = ("lists", name, projections, block)
        return self.once(key, ChannelLists.empty(projections, self.batch, channels, block, self.device))


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


@dataclass(frozen=True)
class Site:
    """One site of one block."""

    x: Tensor
    """(batch, channels) buffer, written where something reads the whole activation."""
    lists: ChannelLists | None
    """Lists to fill: kept channels of each projection, then dropped channels; None where all are dense."""
    rules: ListRules | None
    """Rules of the lists; bounds of 0 where all are dense, None where a kernel of its own fills the lists."""
    kept: Tensor | None
    """(lists,) int32 k of the lists by top-k."""
    projections: int
    low_rank: LowRankPath | None

    @property
    def activation(self) -> Activation:
        """Activation that the site's projections read."""
        return Activation(x=self.x) if self.lists is None else Activation(self.lists.of(0, self.projections))

    @property
    def direct(self) -> bool:
        """Whether a product can list its channels itself: all by thresholds or all by top-k, that alone."""
        if self.rules is None or self.low_rank is not None:
            return False
        return self.rules.top_k in (0, (1 << self.projections) - 1)

    @property
    def fused(self) -> bool:
        """Whether something is dropped, and the kernel that computes x can list its channels at once."""
        return self.lists is not None and self.kept is None and self.direct

    @property
    def addend(self) -> Tensor | None:
        """Product of the low-rank path, which is added to the others."""
        return None if self.low_rank is None else self.low_rank.addend

    def select(self, source: Tensor, norm: tuple[Tensor, Tensor, float] | None, pdl: bool) -> None:
        """Where lists are by top-k, find the smallest score that each row keeps."""
        if self.kept is not None:
            select_smallest(source, self.rules.score_weights, self.kept, self.rules.smallest, norm, pdl)


def make_site(
    name: str,
    widths: dict[str, int],
    channels: int,
    rules: BlockRules,
    producer_block: int,
    list_block: int,
    buffers: Buffers,
) -> Site:
    """The site of these projections (in the order of their columns) under a block's rules.

    Lists have blocks of `producer_block` channels where the kernel that computes x makes them, which owns so
    many; of `list_block`, a power of two, where they are made from x.
    """
    x = buffers.x(name, channels)
    by_projection = {projection: rules.of(projection) for projection in widths}
    if not any(by_projection.values()):
        every = ListRules(buffers.sums(("bounds", name), len(widths), channels))
        return Site(x, None, every, None, len(widths), None)
    low_rank = [projection for projection, rule in by_projection.items() if rule and rule.left is not None]
    listed = [*by_projection.values(), *[by_projection[projection] for projection in low_rank]]
    by_threshold = all(rule is None or rule.top_k is None for rule in listed)
    block = producer_block if by_threshold and not low_rank else list_block
    lists = buffers.lists(name, len(listed), channels, block)
    list_rules, kept = _list_rules(name, listed, len(widths), channels, buffers)
    path = _low_rank_path(name, widths, low_rank, by_projection, lists, buffers) if low_rank else None
    return Site(x, lists, list_rules, kept, len(widths), path)


def _list_rules(
    name: str, listed: list[Any], projections: int, channels: int, buffers: Buffers
) -> tuple[ListRules, Tensor | None]:
    """Bounds of each list in a row; a projection without a rule keeps all: threshold 0."""
    zeros = torch.zeros(channels, device=buffers.device)
    by_rank = [rule is not None and rule.top_k is not None for rule in listed]
    bounds = [
        zeros if rule is None or top else rule.thresholds for rule, top in zip(listed, by_rank, strict=True)
    ]
    inverted = sum(1 << place for place in range(projections, len(listed)))
    if not any(by_rank):
        return ListRules(torch.stack(bounds), inverted=inverted), None
    weights = [rule.weights if top else zeros for rule, top in zip(listed, by_rank, strict=True)]
    kept = [int(rule.top_k) if top else channels for rule, top in zip(listed, by_rank, strict=True)]
    rules = ListRules(
        torch.stack(bounds),
        torch.stack(weights),
        buffers.sums(("smallest", name), len(listed), buffers.batch),
        top_k=sum(1 << place for place, top in enumerate(by_rank) if top),
        inverted=inverted,
    )
    return rules, torch.tensor(kept, dtype=torch.int32, device=buffers.device)


def _low_rank_path(
    name: str,
    widths: dict[str, int],
    projections: list[str],
    rules: dict[str, Any],
    lists: ChannelLists,
    buffers: Buffers,
) -> LowRankPath:
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
