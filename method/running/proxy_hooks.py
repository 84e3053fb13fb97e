"""Neurons that proxies of gate and up choose, on a transformers model: the others are zero, and not read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...kernels.plan.proxies import ProxyRule
from ...kernels.quantised import proxies
from ...kernels.reference import dropped_by_top_k
from ..projections import GATE_ACTIVATION_PATH, PROJECTION_PATHS
from .neuron_hooks import on_neurons

if TYPE_CHECKING:
    from .projection_hooks import ProjectionHooks


def proxy_of(weight: Tensor, group: int) -> Tensor:
    """What a weight (out, in) is in 4 bits, (in, out) in its own type; the last group may be a smaller one."""
    return proxies.proxy_of(weight, group).dequantised()[:, : weight.shape[0]].to(weight)


def dropped_neurons(x: Tensor, gate: Tensor, up: Tensor, activation: nn.Module, rule: ProxyRule) -> Tensor:
    """Neurons (..., neurons) bool that the rule does not choose for inputs x (..., channels).

    gate, up: proxies (channels, neurons). A neuron's score is |act(x̂·gate)·(x̂·up)|, x̂ being the largest
    |x| of each token.
    """
    largest = x.masked_fill(dropped_by_top_k(x, gate.new_ones(rule.channels), rule.read), 0.0)
    # The module's own forward: what hooks see is the model's activation alone.
    scores = activation.forward(largest @ gate) * (largest @ up)
    return dropped_by_top_k(scores, gate.new_ones(rule.neurons), rule.kept)


def on_proxies(
    index: int, block: nn.Module, rule: ProxyRule, hooks: ProjectionHooks
) -> Iterator[RemovableHandle]:
    """Register what zeroes a block's neurons that are not chosen, whose gate, up and down are not read."""
    linears = (block.get_submodule(PROJECTION_PATHS[name]) for name in ("gate", "up"))
    gate, up = (proxy_of(linear.weight, rule.group) for linear in linears)
    activation = block.get_submodule(GATE_ACTIVATION_PATH)

    def choose(x: Tensor) -> Tensor:
        # Weights that stream from main memory have their proxies there.
        placed = gate.to(x.device), up.to(x.device)
        return dropped_neurons(x, *placed, activation, rule).logical_not_()

    return on_neurons(block, choose, partial(hooks.selected, f"{index}.chosen"))
