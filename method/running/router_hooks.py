"""Neurons that a router chooses, on a transformers model: the others are zero, and not read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from torch import nn
from torch.utils.hooks import RemovableHandle

from ...kernels.plan.routers import NeuronRouter
from ..projections import PROJECTION_PATHS
from .neuron_hooks import on_neurons

if TYPE_CHECKING:
    from .projection_hooks import ProjectionHooks


def on_router(
    index: int, block: nn.Module, router: NeuronRouter, hooks: ProjectionHooks
) -> Iterator[RemovableHandle]:
    """Register what zeroes a block's neurons that are not chosen, whose gate, up and down are not read."""
    neurons = block.get_submodule(PROJECTION_PATHS["gate"]).out_features
    choose = partial(router.chosen, neurons=neurons)
    return on_neurons(block, choose, partial(hooks.selected, f"{index}.chosen"))
