"""Neurons that signs predict to be zero, on a transformers model: they are, and are counted as unread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...kernels.plan.signs import SignRule, negative_products, plus_minus
from ..projections import PROJECTION_PATHS
from .neuron_hooks import on_neurons

if TYPE_CHECKING:
    from .projection_hooks import ProjectionHooks


def on_signs(index: int, block: nn.Module, rule: SignRule, hooks: ProjectionHooks) -> Iterator[RemovableHandle]:
    """Register what zeroes a block's predicted neurons, whose rows of gate are not read.

    Rows of up and columns of down are not read for any neuron that is zero, predicted or not.
    """
    unpacked = plus_minus(rule.signs, block.get_submodule(PROJECTION_PATHS["gate"]).in_features)

    def choose(x: Tensor) -> Tensor:
        return negative_products(x, unpacked) <= rule.limit

    def drop(activated: Tensor, chosen: Tensor) -> Tensor:
        left = hooks.selected(f"{index}.predicted", activated, chosen)
        return hooks.selected(f"{index}.activated", left, (left.detach() != 0).to(left.dtype))

    return on_neurons(block, choose, drop)
