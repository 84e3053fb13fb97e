"""Whole decode steps: neurons chosen by proxies (Prox) or routers (LTE), bounds (TopK-Guided), bases (La RoSA).

    python -m wisparse.kernels.bench.proxies --shape llama3.1-8b --blocks 8 --device cpu --sparsities 0.4 0.5

No model is read. Beside them stand the dense step, and one under static thresholds as TEAL's; all of them leave
out as many weights, what proxies, routers and rotations read counted.
On a CPU all of them take turns, so that what else the machine does meets them alike.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from statistics import NormalDist

import torch
from torch import Tensor

from ..errors import KernelError
from ..model.decoder import DecoderShape
from ..model.decoder_weights import DecoderWeights
from ..plan.block_plan import BlockPlan
from ..plan.mechanism import Mechanism
from ..plan.projection_rule import ProjectionRule
from ..plan.proxies import ProxyRule
from ..plan.routers import NeuronRouter
from ..program_end import ends_in_one_line
from ..quantised.packed import side_by_side
from ..quantised.proxies import proxy_of
from .parts.arguments import device_of, share, step_parser
from .parts.drawn import dropping, random_weights, row_weights
from .parts.measured_rows import print_rows
from .parts.model_shapes import shape_of
from .parts.steps_in_turn import Case, Row, timed_rows

GROUP = 64
"""Neurons that share a scale of the proxies, as in conf/method/prox.yaml."""
INPUT_SHARE = 0.5
"""Share of the channels that meet the proxies, as there."""
ROUTED_NEURONS = 32
"""Neighbouring neurons that a router chooses together, as LTE trains them (repro/train/routers.py)."""
ROTATED_SHARE, PLAIN_SHARE = 0.8, 1.2
"""Sparsity of what reads rotated channels, and of o and down, over the nominal one: conf/method/larosa.yaml."""
BASES = {"rotated": ("input_basis", "mlp_basis"), "rotated stream": ("adapter",)}
"""Dense products of a block, by kind: La RoSA's as its code has them, and as its paper."""


def proxied_weights(by_row: DecoderWeights) -> DecoderWeights:
    """The same weights, whose rows of gate and of up lie by neurons, with proxies of both."""
    blocks = []
    for block in by_row.blocks:
        proxies = (proxy_of(rows, GROUP) for rows in (block.gate_rows, block.up_rows))
        blocks.append(replace(block, proxies=side_by_side(*proxies)))
    return replace(by_row, blocks=tuple(blocks))


def share_dropped(shape: DecoderShape, sparsity: float, read: int) -> float:
    """Share of the neurons without which this share of a block's weights is not read, net of `read` weights."""
    weights = sum(out * inner for out, inner in shape.projection_shapes().values())
    return (sparsity * weights + read) / (3 * shape.ffn * shape.hidden)


def choosing(shape: DecoderShape, sparsity: float) -> ProxyRule:
    """The rule under which this share of a block's weights is not read, net of proxies.

    Raises KernelError for more than the feed-forward part has.
    """
    every = ProxyRule(shape.ffn, shape.hidden, shape.ffn, int(shape.hidden * INPUT_SHARE), GROUP)
    dropped = share_dropped(shape, sparsity, every.mechanisms()[Mechanism.PROXY])
    if dropped > 1.0:
        raise KernelError(f"proxies cannot leave out {sparsity} of a block of these shapes; take less")
    return replace(every, kept=int(shape.ffn * (1.0 - dropped)))


def routing(shape: DecoderShape, sparsity: float, device: torch.device) -> tuple[float, tuple[BlockPlan, ...]]:
    """Routers under which this share of a block's weights is not read, net of them; the share of neurons left.

    Rows of a router are random and of norm 1: behind an RMSNorm their logits are standard normal, and about
    that share of the groups is above a quantile.
    Raises KernelError for more than the feed-forward part has.
    """
    groups = shape.ffn // ROUTED_NEURONS
    dropped = share_dropped(shape, sparsity, groups * shape.hidden)
    if dropped >= 1.0:
        raise KernelError(f"routers cannot leave out {sparsity} of a block of these shapes; take less")
    threshold = NormalDist().inv_cdf(dropped)
    rows = [torch.randn(groups, shape.hidden, device=device) for _ in range(shape.blocks)]
    routers = (NeuronRouter((one / one.norm(dim=1, keepdim=True)).bfloat16(), threshold) for one in rows)
    return 1.0 - dropped, tuple(BlockPlan(router=router) for router in routers)


def bounded(plans: tuple[BlockPlan, ...]) -> tuple[BlockPlan, ...]:
    """The same plans, but that as many channels are kept by a bound: every one reaches its threshold.

    It is the dearest case; a token within its bounds costs what thresholds do.
    """

    def bound(rule: ProjectionRule) -> ProjectionRule:
        kept = int((rule.thresholds == 0.0).sum())
        return ProjectionRule(thresholds=torch.zeros_like(rule.thresholds), bounds=(0, kept))

    return tuple(BlockPlan({name: bound(rule) for name, rule in plan.rules.items()}) for plan in plans)


def turned_weights(weights: DecoderWeights, kind: str, basis: Tensor) -> DecoderWeights:
    """The same weights behind a block's bases, one and the same (hidden, hidden) in memory of each block."""
    blocks = (replace(block, **dict.fromkeys(BASES[kind], basis.clone())) for block in weights.blocks)
    return replace(weights, blocks=tuple(blocks))


def by_rank(shape: DecoderShape, sparsity: float, products: int, device: torch.device) -> BlockPlan:
    """La RoSA's top-k under which this share of a block's weights is not read, net of so many products.

    Raises KernelError for more than o and down have channels.
    """
    sizes = shape.projection_shapes()
    weights = {name: out * inner for name, (out, inner) in sizes.items()}
    shares = {name: PLAIN_SHARE if name in ("o", "down") else ROTATED_SHARE for name in sizes}
    every = sum(weights.values())
    of_block = sum(shares[name] * weights[name] for name in sizes) / every
    nominal = (sparsity + products * shape.hidden**2 / every) / of_block
    if PLAIN_SHARE * nominal > 1.0:
        raise KernelError(f"rotations cannot leave out {sparsity} of a block of these shapes; take less")
    kept = {name: int((1.0 - shares[name] * nominal) * inner) for name, (_, inner) in sizes.items()}
    ones = {inner: torch.ones(inner, device=device) for _, inner in sizes.values()}
    return BlockPlan({name: ProjectionRule(top_k=k, weights=ones[sizes[name][1]]) for name, k in kept.items()})


def described(sparsity: float, neurons: float | str = "") -> Row:
    """What a row says of its plan: sparsity, and the share of neurons that are chosen, where they are."""
    return {"sparsity": sparsity, "neurons": neurons}


def cases_of(dense: DecoderWeights, sparsities: list[float]) -> Iterator[tuple[Case, Row]]:
    """What is timed, each with what its row says of it."""
    shape = dense.shape
    by_row = row_weights(dense)
    proxied = proxied_weights(by_row)
    basis = torch.linalg.qr(torch.randn(shape.hidden, shape.hidden, device=dense.device)).Q
    basis = basis.to(dense.dtype).contiguous()
    turned = {kind: turned_weights(dense, kind, basis) for kind in BASES}
    yield ("dense", dense, (BlockPlan(),) * shape.blocks), described(0.0)
    for sparsity in sparsities:
        thresholds, rule = dropping(shape, sparsity, dense.device), choosing(shape, sparsity)
        yield ("thresholds", dense, thresholds), described(sparsity)
        yield ("bounded", dense, bounded(thresholds)), described(sparsity)
        by_proxies = ("proxies", proxied, (BlockPlan(proxies=rule),) * shape.blocks)
        yield by_proxies, described(sparsity, round(rule.kept / shape.ffn, 4))
        neurons, routed = routing(shape, sparsity, dense.device)
        yield ("routed", by_row, routed), described(sparsity, round(neurons, 4))
        for kind, weights in turned.items():
            plan = by_rank(shape, sparsity, len(BASES[kind]), dense.device)
            yield (kind, weights, (plan,) * shape.blocks), described(sparsity)


def rows(name: str, shape: DecoderShape, device: torch.device, options: argparse.Namespace) -> Iterator[Row]:
    """Rows of proxies.csv: a decode step of each kind of plan and sparsity.

    kind: `dense`; `thresholds`; `bounded`: every token keeps what a bound allows; `proxies`; `routed`: neurons
    that routers choose; `rotated`: what both norms of a block give; `rotated stream`: once a block. sparsity:
    share of the blocks' weights that is not read, net of proxies, routers and rotations; neurons: share chosen.
    """
    dense = random_weights(shape, 16, 16, torch.bfloat16, device)
    yield from timed_rows(name, list(cases_of(dense, options.sparsities)), options.context, device)


@ends_in_one_line()
def main() -> None:
    """Print a line of JSON for each kind of plan, and append it to a CSV, if one is named."""
    parser = step_parser(__doc__)
    parser.add_argument("--sparsities", type=share, nargs="+", default=[0.4, 0.5])
    options = parser.parse_args()
    device = device_of(parser, options)
    with torch.inference_mode():
        shape = shape_of(options.shape, options.blocks)
        print_rows(rows(options.shape, shape, device, options), options.csv)


if __name__ == "__main__":
    main()
