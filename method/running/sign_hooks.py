"""Neurons that signs predict to be zero, on a transformers model: they are, and are counted as unread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...kernels.plan.signs import SignRule, negative_products, plus_minus
from ..projections import GATE_ACTIVATION_PATH, PROJECTION_PATHS

if TYPE_CHECKING:
    from .projection_hooks import ProjectionHooks


def on_signs(index: int, block: nn.Module, rule: SignRule, hooks: ProjectionHooks) -> Iterator[RemovableHandle]:
    """Register what zeroes a block's predicted neurons, whose rows of gate are not read.

    Rows of up and columns of down are not read for any neuron that is zero, predicted or not.
    """
    gate = block.get_submodule(PROJECTION_PATHS["gate"])
    unpacked = plus_minus(rule.signs, gate.in_features)
    kept: list[Tensor] = []  # from gate's input to its activated output in the same pass

    def predict(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        kept[:] = [(negative_products(x, unpacked) <= rule.limit).to(x.dtype)]

    def drop(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        left = hooks.selected(f"{index}.predicted", output, kept.pop())
        return hooks.selected(f"{index}.activated", left, (left.detach() != 0).to(left.dtype))

    yield gate.register_forward_pre_hook(predict)
    yield block.get_submodule(GATE_ACTIVATION_PATH).register_forward_hook(drop)
