"""A model's linears while an engine reads their stored weights in few bits: they hold no others of their own.

A pass of the model, such as one over a prompt, computes with the stored rows: each linear's weight is made of
them when it is its turn, and dropped behind its product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import KernelError
from ..quantised.packed import FewBitsWeight


class _Scratch:
    """Room for one dequantised weight at a time.

    On a CPU it is kept between them: to get memory from the system takes as long as to fill it. A GPU's
    allocator keeps what it got for whoever needs it next.
    """

    def __init__(self) -> None:
        self._kept = torch.empty(0)

    def made(self, stored: FewBitsWeight, like: Tensor) -> Tensor:
        """(out, in) view of the stored weight's values, in the dtype of a linear's; good until the next."""
        rows = self._room(stored.shape, like)
        stored.dequantise_into(rows)
        return rows.T

    def _room(self, shape: tuple[int, int], like: Tensor) -> Tensor:
        if like.device.type != "cpu":
            return torch.empty(shape, dtype=like.dtype, device=like.device)
        size = math.prod(shape)
        if self._kept.dtype != like.dtype or self._kept.numel() < size:
            self._kept = torch.empty(size, dtype=like.dtype)
        return self._kept[:size].view(shape)


@dataclass(eq=False)
class _Taken:
    stored: Mapping[str, FewBitsWeight]
    linears: dict[str, nn.Linear] = field(default_factory=dict)
    """Those whose weights the stored ones make bit by bit, and which were dropped."""
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    """Their parameters, without their values."""
    handles: list[RemovableHandle] = field(default_factory=list)
    scratch: _Scratch = field(default_factory=_Scratch)
    engines: int = 0


_TAKEN: WeakKeyDictionary[nn.Module, _Taken] = WeakKeyDictionary()
"""Beside the models, so that a copy of one is free."""


@torch.inference_mode(False)
@torch.no_grad()
def take_linears(
    model: nn.Module, linears: Mapping[str, nn.Linear], stored: Mapping[str, FewBitsWeight]
) -> None:
    """Let linears compute with stored weights (in, out) of the same names, until as many `give_back_linears`.

    What they hold is dropped where the stored weights make it again, bit by bit; other values, and such as are
    an embedding's as well, stay for later. Raises KernelError where an engine reads others of the same model.
    """
    taken = _TAKEN.get(model)
    if taken is not None and taken.stored is not stored:
        raise KernelError("an engine reads other stored weights of this model already; close that one first")
    if taken is None:
        taken = _TAKEN[model] = _Taken(stored)
        embeddings = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
        for name, linear in linears.items():
            taken.handles += _computing_with(linear, stored[name], taken.scratch)
            shared = any(linear.weight is weight for weight in embeddings)
            if not shared and torch.equal(taken.scratch.made(stored[name], linear.weight), linear.weight):
                taken.linears[name], taken.parameters[name] = linear, linear.weight
                linear.weight.data = _nothing(linear.weight)
    taken.engines += 1


@torch.inference_mode(False)
@torch.no_grad()
def give_back_linears(model: nn.Module) -> None:
    """Undo one `take_linears`; the last one makes the weights again that were dropped."""
    taken = _TAKEN[model]
    taken.engines -= 1
    if taken.engines:
        return
    del _TAKEN[model]
    for handle in taken.handles:
        handle.remove()
    for name, linear in taken.linears.items():
        if linear.weight is taken.parameters[name]:  # else the linear was given another meanwhile
            made = taken.scratch.made(taken.stored[name], linear.weight)
            linear.weight.data = made.clone(memory_format=torch.contiguous_format)


def check_not_taken(model: nn.Module) -> None:
    """Raise KernelError for an engine on a model's own weights, where another has dropped them."""
    if model in _TAKEN:
        raise KernelError(
            "an engine reads stored weights of this model, and its linears hold none; close that one first, or "
            "give this one the same weights"
        )


def _computing_with(linear: nn.Linear, stored: FewBitsWeight, scratch: _Scratch) -> Iterator[RemovableHandle]:
    """Hooks that give a linear a weight for the length of its product; it is free again behind it."""
    resting: list[Tensor] = []

    @torch.inference_mode(False)
    @torch.no_grad()
    def place(module: nn.Module, _: tuple[Tensor, ...]) -> None:
        resting.append(module.weight.data)
        module.weight.data = scratch.made(stored, module.weight)

    def put_back(module: nn.Module, _: tuple[Tensor, ...], __: Tensor) -> None:
        module.weight.data = resting.pop()

    yield linear.register_forward_pre_hook(place)
    yield linear.register_forward_hook(put_back, always_call=True)


def _nothing(like: Tensor) -> Tensor:
    """A tensor of the same size that takes one element's memory, and shows in whatever is computed with it."""
    return torch.full((), torch.nan, dtype=like.dtype, device=like.device).expand(like.shape)
