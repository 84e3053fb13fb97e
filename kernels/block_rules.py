"""Rules of a plan for each block, checked against the model and moved to its device."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch

from .decoder import DecoderShape
from .errors import KernelError
from .plan_data import BlockPlan, GateRule, Mechanism, Plan, of_another_model


def block_rules(
    plan: Plan | None, shape: DecoderShape, device: torch.device, dtype: torch.dtype
) -> tuple[BlockPlan, ...]:
    """The plan of every block on its device, an empty one for the dense model; low-rank factors in `dtype`.

    Raises KernelError for a plan of another model, an empty plan, or rules that exclude each other.
    """
    if plan is None:
        return tuple(BlockPlan() for _ in range(shape.blocks))
    if problem := of_another_model(plan.shapes, shape.shapes()):
        raise KernelError(problem)
    blocks = plan.block_plans()
    if not any(block.mechanisms() for block in blocks):
        raise KernelError("this plan drops nothing; for the dense model give no plan")
    return tuple(_placed(index, block, shape, device, dtype) for index, block in enumerate(blocks))


def needed(blocks: Collection[BlockPlan]) -> set[Mechanism]:
    """All that the blocks' plans are made of."""
    return {mechanism for block in blocks for mechanism in block.mechanisms()}


def check_supported(needed: Collection[Mechanism], supports: Collection[Mechanism], device: str) -> None:
    """Raise KernelError for a mechanism that a step on `device` does not execute."""
    if lacking := [mechanism.value for mechanism in Mechanism if mechanism in set(needed) - set(supports)]:
        raise KernelError(
            f"on {device} the decode engine does not execute {' and '.join(lacking)}; take a method without"
            f"{' and heads=none' if Mechanism.HEADS.value in lacking else ''}, or evaluate the plan "
            "without the engine (latency=none)"
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
    block = replace(block, rules=rules, heads=heads)
    if block.gate is None:
        return block
    thresholds = block.gate.thresholds.to(device, torch.float32).contiguous()
    return replace(block, gate=GateRule(thresholds))
