"""Products of a block, each with all that its launches follow from: what it reads, its weight and its tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cuda.product import CUDATile
from ..cuda.stored_weight import CUDAWeight
from ..errors import KernelError
from ..model.decoder import SITE_OF_PROJECTION, Product
from ..model.decoder_weights import PROXIES
from ..plan.block_plan import BlockPlan
from ..plan.projection_rule import LEAST, ProjectionRule
from ..plan.proxies import ProxyRule
from ..quantised.packed import PackedInt4, PackedWeight
from ..triton.channel_lists import ChannelLists
from ..triton.compact import ListRules
from ..triton.gemv import Activation, Columns
from ..triton.gemv_tiles import Tile
from ..triton.shared_lists import SharedTopK
from .buffers import Buffers
from .low_rank import LowRankPath, low_rank_path
from .step_tiles import StepTiles

PROJECTIONS = {
    "qkv": ("q", "k", "v"),
    "o": ("o",),
    "gate_up": ("gate", "up"),
    "gate": ("gate",),
    "down": ("down",),
}
"""Projections of each product, in the order of their columns; `gate` alone in a gated block."""


@dataclass(frozen=True)
class Reads:
    """What a product reads of an activation: all of it, or lists of kept channels."""

    x: Tensor
    """(batch, channels) buffer, written where something reads the whole activation."""
    lists: ChannelLists | None = None
    """Lists to fill: kept channels of each projection, then dropped channels; None where all are dense."""
    rules: ListRules | None = None
    """Rules of the lists; bounds of 0 where all are dense, None where a kernel of its own fills the lists."""
    low_rank: LowRankPath | None = None
    kept: Tensor | None = None
    """(lists,) int32 k of the lists by top-k; with `fewest` the most of those within bounds."""
    fewest: Tensor | None = None
    """(lists,) int32 least k of each list, where some are of thresholds within bounds."""
    shared: SharedTopK | None = None
    """The top-k of all rows together that fills the lists; then there are no `rules`."""


@dataclass(frozen=True)
class Site:
    """One product of one block."""

    name: str
    """One of `PROJECTIONS`, or PROXIES."""
    weight: Tensor | CUDAWeight
    """(in, sum of widths)"""
    widths: tuple[int, ...]
    """Columns of each projection."""
    reads: Reads
    bias: Tensor | None
    """(sum of widths,) of the model and of the rules, in the dtype of the activations; None: there is none."""
    tile: Tile
    """Tile of the Triton product, over lists or over the whole activation."""
    cuda: CUDATile | None
    """Tile of the CUDA C++ product, which lists its channels itself; None where launches before it do."""
    library: bool = False
    """Whether torch computes it."""
    whole: bool = False
    """Whether the kernel that computes x can write all of it alone, and lists are made behind it."""

    @property
    def columns(self) -> Columns:
        """Projections side by side, as in the weight."""
        return Columns.side_by_side(*self.widths)

    @property
    def activation(self) -> Activation:
        """Activation that the Triton product reads."""
        lists = self.reads.lists
        return Activation(x=self.reads.x) if lists is None else Activation(lists.of(0, len(self.widths)))

    @property
    def fused(self) -> bool:
        """Whether something is dropped, and the kernel that computes x can list its channels at once.

        Attention can those of one row.
        """
        listed = self.reads.lists is not None and self.reads.kept is None and _by_one_rule(self.reads)
        return listed and not self.whole and (self.name != "o" or self.reads.x.shape[0] == 1)

    @property
    def addend(self) -> Tensor | None:
        """Product of the low-rank path, which is added to the others."""
        return None if self.reads.low_rank is None else self.reads.low_rank.addend

    @property
    def written(self) -> dict[str, object]:
        """Outputs of the kernel that computes the activation: its lists where it can make them, else x."""
        if self.fused and self.cuda is None:
            return {"bounds": self.reads.rules.bounds[0], "lists": self.reads.lists}
        return {"x_out": self.reads.x}


def make_site(
    product: Product,
    weight: Tensor | PackedWeight,
    rules: BlockPlan,
    tiles: StepTiles,
    producer_block: int,
    buffers: Buffers,
    own_bias: Tensor | None = None,
) -> Site:
    """The site of a product under a block's rules.

    Lists have blocks of `producer_block` channels where the kernel that computes x makes them, which owns so
    many; of `tiles.list_block` where they are made from x. Raises KernelError for weights in few bits that no
    kernel reads under these rules.
    """
    widths = dict(zip(PROJECTIONS[product.name], product.widths, strict=True))
    reads = _shared(widths, product.inner, rules, buffers, tiles.cuda.shared_top_k)
    if reads is None:
        reads = _reads(widths, product.inner, rules, producer_block, tiles.list_block, buffers)
    bias = rules.bias(widths, own_bias)
    bias = None if bias is None else bias.to(buffers.dtype)
    tile = (tiles.dense if reads.lists is None else tiles.listed)[product.name]
    if reads.shared is not None and isinstance(weight, Tensor):
        return Site(product.name, weight, product.widths, reads, bias, tiles.shared_by(product), cuda=None)
    cuda = tiles.cuda.products.get(product.name) if _by_one_rule(reads) else None
    if isinstance(weight, PackedWeight):
        if cuda is None:
            raise KernelError(
                f"no kernel reads {product.name} of {product.widths} outputs in {weight.format} under this "
                "plan: it takes multiples of 64 outputs, one kind of rule for all projections, no low-rank path"
            )
        weight = CUDAWeight.of(weight)
    plain = reads.lists is None and cuda is None and isinstance(weight, Tensor)
    library = plain and product.name in tiles.library
    return Site(product.name, weight, product.widths, reads, bias, tile, cuda, library)


def proxies_site(proxies: PackedInt4, rule: ProxyRule, tiles: StepTiles, buffers: Buffers) -> Site:
    """The product of the largest |x| with the proxies of gate and up.

    Raises KernelError where no kernel reads them.
    """
    if (cuda := tiles.cuda.products.get(PROXIES)) is None:
        raise KernelError(
            "on a GPU, proxies are multiplied in half precision, in groups of multiples of 64 neurons, from "
            "compute capability 9.0 on and with cuda-bindings; evaluate the plan without the engine "
            "(latency=none)"
        )
    largest = ProjectionRule(
        top_k=rule.read, weights=torch.ones(rule.channels, dtype=torch.float32, device=buffers.device)
    )
    names = dict(zip(PROJECTIONS["gate_up"], proxies.widths, strict=True))
    rules = BlockPlan(dict.fromkeys(names, largest))
    reads = _reads(names, rule.channels, rules, tiles.list_block, tiles.list_block, buffers)
    weight = CUDAWeight.of(proxies)
    return Site(PROXIES, weight, proxies.widths, reads, None, tiles.listed["gate_up"], cuda)


def _by_one_rule(reads: Reads) -> bool:
    """Whether one rule, thresholds or top-k, decides for all projections: a kernel can list their channels."""
    if reads.rules is None or reads.low_rank is not None:
        return False
    return reads.rules.top_k in (0, (1 << reads.rules.bounds.shape[0]) - 1)


def _shared(
    widths: dict[str, int], channels: int, rules: BlockPlan, buffers: Buffers, selects: bool
) -> Reads | None:
    """What a batch reads of a site by one top-k; None where each row has a rule of its own, as one row has."""
    name, found = SITE_OF_PROJECTION[next(iter(widths))], [rules.of(projection) for projection in widths]
    combined = {rule.shared for rule in found if rule is not None}
    if buffers.batch == 1 or not combined - {None}:
        return None
    if len(combined) > 1 or any(rule is not None and rule.left is not None for rule in found):
        raise KernelError(
            f"{name}: a mask shared by a batch goes with no other rule; give {', '.join(widths)} the same"
        )
    ones = torch.ones(channels, dtype=torch.float32, device=buffers.device)
    kept = [channels if rule is None else int(rule.top_k) for rule in found]
    rule = SharedTopK(
        torch.stack([ones if rule is None else rule.weights for rule in found]),
        torch.tensor(kept, dtype=torch.int32, device=buffers.device),
        buffers.sums(("magnitudes", name), channels),
        maximum=combined == {"maximum"},
        smallest=buffers.sums(("smallest of rows", name), len(found), 1) if selects else None,
    )
    lists = buffers.shared_lists(name, len(found), channels)
    return Reads(buffers.x(name, channels), lists, shared=rule)


def _reads(
    widths: dict[str, int],
    channels: int,
    rules: BlockPlan,
    producer_block: int,
    list_block: int,
    buffers: Buffers,
) -> Reads:
    name = SITE_OF_PROJECTION[next(iter(widths))]
    x = buffers.x(name, channels)
    by_projection = {projection: rules.of(projection) for projection in widths}
    if not any(by_projection.values()):
        return Reads(x, rules=ListRules(buffers.sums(("bounds", name), len(widths), channels)))
    low_rank = [projection for projection, rule in by_projection.items() if rule and rule.left is not None]
    listed = [*by_projection.values(), *[by_projection[projection] for projection in low_rank]]
    by_threshold = not any(rule is not None and rule.ranks for rule in listed)
    block = producer_block if by_threshold and not low_rank else list_block
    lists = buffers.lists(name, len(listed), channels, block)
    list_rules, bounds = _list_rules(name, listed, len(widths), channels, buffers)
    path = low_rank_path(name, widths, low_rank, by_projection, lists, buffers) if low_rank else None
    return Reads(x, lists, list_rules, path, **bounds)


def _list_rules(
    name: str, listed: list[ProjectionRule | None], projections: int, channels: int, buffers: Buffers
) -> tuple[ListRules, dict[str, Tensor]]:
    """Bounds of each list in a row, and what `Reads` says of k; a projection without a rule keeps all."""
    zeros = torch.zeros(channels, dtype=torch.float32, device=buffers.device)
    by_rank = [rule is not None and rule.ranks for rule in listed]
    bounds = [
        zeros if rule is None or top else rule.thresholds for rule, top in zip(listed, by_rank, strict=True)
    ]
    inverted = sum(1 << place for place in range(projections, len(listed)))
    if not any(by_rank):
        return ListRules(torch.stack(bounds), inverted=inverted), {}
    weights = [_score_weights(rule) if top else zeros for rule, top in zip(listed, by_rank, strict=True)]
    every = channels, channels
    kept = [_bounds_on_k(rule) if top else every for rule, top in zip(listed, by_rank, strict=True)]
    rules = ListRules(
        torch.stack(bounds),
        torch.stack(weights),
        buffers.sums(("smallest", name), len(listed), buffers.batch),
        top_k=sum(1 << place for place, top in enumerate(by_rank) if top),
        inverted=inverted,
    )
    fewest, most = torch.tensor(kept, dtype=torch.int32, device=buffers.device).T.contiguous()
    bounded = any(rule is not None and rule.bounds is not None for rule in listed)
    return rules, {"kept": most, **({"fewest": fewest} if bounded else {})}


def _score_weights(rule: ProjectionRule) -> Tensor:
    """Weights w of the score |x|·w; of thresholds within bounds it is 1 at the threshold."""
    return 1.0 / rule.thresholds.clamp_min(LEAST) if rule.weights is None else rule.weights


def _bounds_on_k(rule: ProjectionRule) -> tuple[int, int]:
    return (rule.top_k, rule.top_k) if rule.bounds is None else rule.bounds
