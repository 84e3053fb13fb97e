"""Rules of a plan for each block, checked against the model and moved to its device."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import torch

from ..errors import KernelError
from ..model.decoder import SITES, DecoderShape, split_key
from .block_plan import BlockPlan, GateRule
from .mechanism import Mechanism, in_words
from .whole_plan import Plan, of_another_model

PAYS_BELOW = 0.6
"""Share of a site's weights up to which a batch is faster over lists than densely."""

SHARED_PAYS_UP_TO = 8
"""Rows up to which a mask that all of them share pays, at the sites of the feed-forward part."""
SHARED_PAYS_AT = ("gate", "up", "down")

GATED_SITES = (SITES["attention_input"], SITES["attention_output"], ("gate", "up", "down"))
"""Projections that are dense together in a block that chooses neurons."""


def block_rules(
    plan: Plan | None,
    shape: DecoderShape,
    device: torch.device,
    dtype: torch.dtype,
    dense: Collection[str] = (),
) -> tuple[BlockPlan, ...]:
    """The plan of every block on its device, an empty one for the dense model; low-rank factors in `dtype`.

    dense: keys of projections that are computed densely all the same. Raises KernelError for a plan of another
    model, an empty plan, or rules that exclude each other.
    """
    if plan is None:
        return tuple(BlockPlan() for _ in range(shape.blocks))
    if problem := of_another_model(plan.shapes, shape.shapes()):
        raise KernelError(problem)
    blocks = plan.block_plans()
    if not any(block.mechanisms() for block in blocks):
        raise KernelError("this plan drops nothing; for the dense model give no plan")
    return tuple(
        _placed(index, block.without(_of_block(dense, index)), shape, device, dtype)
        for index, block in enumerate(blocks)
    )


def dense_for_a_batch(plan: Plan | None, batch: int, device: torch.device) -> frozenset[str]:
    """Keys of the projections that a batch on a GPU had better compute densely.

    Those are of the sites of which its rows, each with a mask of its own, are expected to read together more
    than lists pay for. To whom the same channels matter is not known: masks count as independent. A mask that
    all rows share reads what one row reads. On an H200 it gains 7 to 12 % with four and eight rows at the
    sites of the feed-forward part, and loses at those of attention (results/heads_speed.csv), which are
    dense, as all are with more rows.
    """
    if plan is None or batch == 1 or device.type != "cuda":
        return frozenset()
    full = (
        [f"{index}.{name}" for name in names]
        for index, block in enumerate(plan.block_plans())
        for names in (GATED_SITES if block.chooses_neurons else SITES.values())
        if (share := _expected_share(plan, index, block, names, batch)) is not None and share > PAYS_BELOW
    )
    return frozenset(name for names in full for name in names)


def gated_blocks(plan: Plan | None, dense: Collection[str]) -> list[int]:
    """Blocks whose gate chooses neurons, but for those where these are dense."""
    return _blocks_by_neurons(plan, dense, lambda block: block.gate is not None)


def predicted_blocks(plan: Plan | None, dense: Collection[str]) -> list[int]:
    """Blocks whose neurons signs or a router choose before their gate, but for those where these are dense."""
    return _blocks_by_neurons(plan, dense, lambda block: block.signs is not None or block.router is not None)


def proxied_blocks(plan: Plan | None, dense: Collection[str]) -> dict[int, int]:
    """Neurons that share a scale of the proxies, by the block that these choose for, unless it is dense."""
    blocks = _blocks_by_neurons(plan, dense, lambda block: block.proxies is not None)
    return {index: plan.block_plans()[index].proxies.group for index in blocks}


def _blocks_by_neurons(
    plan: Plan | None, dense: Collection[str], chosen: Callable[[BlockPlan], bool]
) -> list[int]:
    blocks = () if plan is None else plan.block_plans()
    return [index for index, block in enumerate(blocks) if chosen(block) and f"{index}.up" not in dense]


def _expected_share(
    plan: Plan, index: int, block: BlockPlan, names: Collection[str], batch: int
) -> float | None:
    """Share of a site's weights that a batch reads, all where a shared mask does not pay; None: no rule.

    Neurons that are chosen before their gate are read for one row alone: each row of a batch has its own.
    """
    before = (block.signs, block.proxies, block.router)
    if any(part is not None for part in before) and "up" in names:
        return 1.0
    gated = block.gate is not None and "up" in names
    rules = {name: block.of(name) for name in names if not gated or name != "gate"}
    if not (gated or any(rules.values())):
        return None
    shared = any(rule and rule.shared for rule in rules.values())
    if shared and (batch > SHARED_PAYS_UP_TO or not set(names) <= set(SHARED_PAYS_AT)):
        return 1.0
    masks = 1 if shared else batch
    read, every = 0.0, 0
    for name, rule in rules.items():
        out, inner = plan.shapes.get(f"{index}.{name}", (0, 0))
        dropped = 0.0
        if rule is not None and rule.top_k is not None:
            dropped = 1.0 - rule.top_k / inner
        elif rule is not None or gated:
            dropped = plan.expected_sparsity(f"{index}.{name}")
            dropped = 0.5 if dropped is None else dropped
        read, every = read + out * (1.0 - dropped**masks), every + out
    return read / every if every else None


def _of_block(names: Collection[str], index: int) -> set[str]:
    """Projections of one block among keys."""
    return {projection for block, projection in map(split_key, names) if block == index}


def needed(blocks: Collection[BlockPlan]) -> set[Mechanism]:
    """All that the blocks' plans are made of."""
    return {mechanism for block in blocks for mechanism in block.mechanisms()}


def check_supported(needed: Collection[Mechanism], supports: Collection[Mechanism], device: str) -> None:
    """Raise KernelError for a mechanism that a step on `device` does not execute."""
    if lacking := set(needed) - set(supports):
        raise KernelError(
            f"on {device} the decode engine does not execute {in_words(lacking)}; take a method without, "
            "or evaluate the plan without the engine (latency=none)"
        )


def _placed(
    index: int, block: BlockPlan, shape: DecoderShape, device: torch.device, dtype: torch.dtype
) -> BlockPlan:
    if problem := block.misfit(shape.projection_shapes()):
        raise KernelError(f"block {index}: {problem}")
    heads = block.heads
    if heads is not None:
        if (found := (heads.weight.shape[0], heads.groups)) != (shape.heads, shape.kv_heads):
            raise KernelError(
                f"block {index}: its router is for {found[0]} heads in {found[1]} groups, and the model has "
                f"{shape.heads} in {shape.kv_heads}"
            )
        heads = heads.to(device, dtype)
    rules = {projection: rule.to(device, dtype) for projection, rule in block.rules.items()}
    signs = None if block.signs is None else block.signs.to(device)
    router = None if block.router is None else block.router.to(device, dtype)
    block = replace(block, rules=rules, heads=heads, signs=signs, router=router)
    if block.gate is None:
        return block
    thresholds = block.gate.thresholds.to(device, torch.float32).contiguous()
    return replace(block, gate=GateRule(thresholds))
