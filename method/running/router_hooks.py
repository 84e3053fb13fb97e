"""Neurons that a router chooses, on a transformers model: the others are zero, and not read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...kernels.plan.routers import NeuronRouter
from ..projections import GATE_ACTIVATION_PATH, PROJECTION_PATHS

if TYPE_CHECKING:
    from .projection_hooks import ProjectionHooks


def on_router(
    index: int, block: nn.Module, router: NeuronRouter, hooks: ProjectionHooks
) -> Iterator[RemovableHandle]:
    """Register what zeroes a block's neurons that are not chosen, whose gate, up and down are not read."""
    gate = block.get_submodule(PROJECTION_PATHS["gate"])
    kept: list[Tensor] = []  # from gate's input to its activated output in the same pass

    def choose(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        kept[:] = [router.chosen(x, gate.out_features).to(x.dtype)]

    def drop(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return hooks.selected(f"{index}.chosen", output, kept.pop())

    yield gate.register_forward_pre_hook(choose)
    yield block.get_submodule(GATE_ACTIVATION_PATH).register_forward_hook(drop)
