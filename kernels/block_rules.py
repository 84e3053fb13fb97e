"""Rules of a plan for each block, checked against the model and moved to its device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .decoder import DecoderShape
from .errors import KernelError


class Rule(Protocol):
    """How one projection drops channels: thresholds, or the k highest scores; perhaps a low-rank path."""

    thresholds: Tensor | None
    top_k: int | None
    weights: Tensor | None
    left: Tensor | None
    right: Tensor | None


class Plan(Protocol):
    """Interface of a sparsity plan; see `SparsityPlan` for its meaning."""

    shapes: dict[str, tuple[int, int]]
    rules: dict[str, Any]
    gate_thresholds: dict[int, Tensor]
    rotations: dict[str, Tensor]


@dataclass(frozen=True)
class BlockRules:
    """Rules of one block; a projection that is not named keeps every channel."""

    rules: dict[str, Any]
    """Rule of each projection that is sparse, by its name."""
    gate_thresholds: Tensor | None
    """(ffn,) float32 thresholds on |silu(gate)| of a gated block."""

    def of(self, projection: str) -> Any | None:
        """The rule of a projection, None where it is dense."""
        return self.rules.get(projection)


def block_rules(
    plan: Plan | None, shape: DecoderShape, device: torch.device, dtype: torch.dtype
) -> tuple[BlockRules, ...]:
    """The rules of every block, None for the dense model; low-rank factors in the weights' dtype.

    Raises KernelError for a plan of another model, an empty plan, or rules that exclude each other.
    """
    if plan is None:
        return tuple(BlockRules({}, None) for _ in range(shape.blocks))
    if plan.shapes != shape.shapes():
        raise KernelError(
            f"this plan is for another model: it has {len(plan.shapes)} projections, first "
            f"{next(iter(plan.shapes.items()), None)}; the model has {len(shape.shapes())}, first "
            f"{next(iter(shape.shapes().items()))}"
        )
    if plan.rotations:
        raise KernelError(
            "the decode engine does not execute rotated plans; take a method without rotations, or latency=none"
        )
    if not plan.rules and not plan.gate_thresholds:
        raise KernelError("this plan drops nothing; for the dense model give no plan")
    by_block: list[dict[str, Any]] = [{} for _ in range(shape.blocks)]
    for key, rule in plan.rules.items():
        block, projection = key.split(".")
        _check_rule(key, rule, plan.shapes[key])
        by_block[int(block)][projection] = _placed(rule, device, dtype)
    return tuple(
        BlockRules(rules, _gate(plan, index, rules, shape.ffn, device)) for index, rules in enumerate(by_block)
    )


def _gate(plan: Plan, block: int, rules: dict[str, Any], ffn: int, device: torch.device) -> Tensor | None:
    thresholds = plan.gate_thresholds.get(block)
    if thresholds is None:
        return None
    if clashing := sorted(rules.keys() & {"up", "down"}):
        raise KernelError(f"block {block} has thresholds on its gate and on {', '.join(clashing)}; take one")
    if thresholds.shape != (ffn,):
        raise KernelError(f"block {block} has {tuple(thresholds.shape)} gate thresholds, expected ({ffn},)")
    return thresholds.to(device, torch.float32).contiguous()


def _check_rule(key: str, rule: Any, shape: tuple[int, int]) -> None:
    out, inner = shape
    expected = {"thresholds": (inner,), "weights": (inner,), "left": (out, None), "right": (None, inner)}
    for part, wanted in expected.items():
        value = getattr(rule, part)
        if value is None:
            continue
        fits = value.ndim == len(wanted) and all(
            w in (None, n) for w, n in zip(wanted, value.shape, strict=True)
        )
        if not fits:
            raise KernelError(f"{key}: {part} has shape {tuple(value.shape)}, which does not fit {shape}")


def _placed(rule: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The same rule on the device: thresholds and score weights in float32, factors in the weights' dtype."""
    parts = {
        part: value.to(device, dtype if part in ("left", "right") else torch.float32).contiguous()
        for part, value in vars(rule).items()
        if isinstance(value, Tensor)
    }
    return type(rule)(**{**vars(rule), **parts})
