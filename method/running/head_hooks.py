"""Chosen key-value groups on a transformers model: hooks that leave nothing of the others for o."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...kernels.plan.heads import HeadRule
from ..plan import PlanError
from ..projections import NORM_PATHS, PROJECTION_PATHS, key

if TYPE_CHECKING:
    from .projection_hooks import ProjectionHooks
    from .traffic import TrafficCounter


def check_heads(config: object, block: int, rule: HeadRule) -> None:
    """Raises PlanError where a router is for other heads than a model of this configuration has."""
    found = (rule.weight.shape[0], rule.groups)
    expected = (config.num_attention_heads, config.num_key_value_heads)
    if found != expected:
        raise PlanError(
            f"block {block}: its router is for {found[0]} heads in {found[1]} groups, and the model has "
            f"{expected[0]} in {expected[1]}"
        )


def on_heads(
    index: int, block: nn.Module, rule: HeadRule, hooks: ProjectionHooks, counter: TrafficCounter, ruled: bool
) -> Iterator[RemovableHandle]:
    """Register what chooses the groups of a block's sparse tokens and zeroes the others' outputs before o.

    hooks: of the block's projections, which say what tokens are sparse; to be registered after these, so that
    o's own rule sees the zeros. ruled: whether o has a rule, which then counts them.
    """
    chosen: list[Tensor] = []  # from the norm to o in the same pass

    def choose(_: nn.Module, __: tuple[Tensor, ...], x: Tensor) -> None:
        mask = rule.chosen(x.detach())
        if hooks.sparse_positions is not None:
            mask |= ~hooks.sparse_positions[..., None]
        counter.add_groups(index, mask)
        chosen[:] = [mask]

    def clear(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0]
        kept = chosen.pop().repeat_interleave(x.shape[-1] // rule.groups, dim=-1)
        name = key(index, "o")
        if ruled:
            hooks.left[name] = kept
        else:
            counter.add_kept(name, kept)
        return (torch.where(kept, x, 0.0), *inputs[1:])

    yield block.get_submodule(NORM_PATHS["attention_input"]).register_forward_hook(choose)
    yield block.get_submodule(PROJECTION_PATHS["o"]).register_forward_pre_hook(clear)
