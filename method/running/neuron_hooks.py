"""Neurons that are chosen before their gate, on a transformers model: the others are zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..projections import GATE_ACTIVATION_PATH, PROJECTION_PATHS


def on_neurons(
    block: nn.Module, choose: Callable[[Tensor], Tensor], drop: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[RemovableHandle]:
    """Register what chooses a block's neurons where gate reads, and drops the others behind its activation.

    choose: of gate's input (..., channels) the chosen neurons (..., neurons) bool. drop: what is left of the
    activated gate (..., neurons) by these, 1 or 0 in the input's type.
    """
    chosen: list[Tensor] = []  # from gate's input to its activated output in the same pass

    def before_gate(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach()
        chosen[:] = [choose(x).to(x.dtype)]

    def behind_gate(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return drop(output, chosen.pop())

    yield block.get_submodule(PROJECTION_PATHS["gate"]).register_forward_pre_hook(before_gate)
    yield block.get_submodule(GATE_ACTIVATION_PATH).register_forward_hook(behind_gate)
