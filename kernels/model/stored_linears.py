"""A model's linears while an engine reads their stored weights in few bits: they hold no others of their own.

A pass of the model, such as one over a prompt, computes with the stored values: some columns of a linear's
weight are dequantised at a time, and multiplied at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import KernelError
from ..quantised.packed import FewBitsWeight
from ..quantised.stored import Dequantised


class _Scratch:
    """Room for the dequantised values of one piece; to get memory anew takes as long as to fill it."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._room = torch.empty(0, dtype=dtype, device=device)

    @torch.inference_mode(False)
    @torch.no_grad()
    def made(self, piece: Dequantised) -> Tensor:
        """(out, in) view of a piece's values, good until the next."""
        inner, out = piece.shape
        if self._room.numel() < inner * out:
            self._room = self._room.new_empty(inner * out)
        rows = self._room[: inner * out].view(inner, out)
        piece.dequantise_into(rows)
        return rows.T


@dataclass(eq=False)
class _Taken:
    stored: Mapping[str, FewBitsWeight]
    linears: Mapping[str, nn.Linear]
    scratch: _Scratch
    dropped: dict[str, nn.Parameter] = field(default_factory=dict)
    """Parameters without their values, which the stored ones make bit by bit."""
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
        some = next(iter(linears.values())).weight
        taken = _TAKEN[model] = _Taken(stored, linears, _Scratch(some.dtype, some.device))
        embeddings = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
        for name, linear in linears.items():
            shared = any(linear.weight is weight for weight in embeddings)
            if not shared and _makes(stored[name], linear.weight, taken.scratch):
                taken.dropped[name] = linear.weight
                linear.weight.data = _nothing(linear.weight)
            linear.forward = _forward(linear, stored[name], taken.scratch)
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
    for name, linear in taken.linears.items():
        del linear.forward
        if linear.weight is taken.dropped.get(name):  # else it was not dropped, or the linear has another now
            weight = torch.empty(linear.weight.shape, dtype=linear.weight.dtype, device=linear.weight.device)
            for columns, piece in taken.stored[name].pieces():
                weight[columns] = taken.scratch.made(piece)
            linear.weight.data = weight


def is_taken(model: nn.Module) -> bool:
    """Whether linears of the model compute with stored weights now, and may hold no others."""
    return model in _TAKEN


def check_not_taken(model: nn.Module) -> None:
    """Raise KernelError for an engine on a model's own weights, where another has dropped them."""
    if is_taken(model):
        raise KernelError(
            "an engine reads stored weights of this model, and its linears hold none; close that one first, or "
            "give this one the same weights"
        )


def _forward(linear: nn.Linear, stored: FewBitsWeight, scratch: _Scratch) -> Callable[[Tensor], Tensor]:
    """What a linear computes, from its stored weight."""

    def forward(input: Tensor) -> Tensor:  # its name in nn.Linear
        bias = linear.bias
        parts = [
            F.linear(input, scratch.made(piece), None if bias is None else bias[columns])
            for columns, piece in stored.pieces()
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    return forward


def _makes(stored: FewBitsWeight, weight: Tensor, scratch: _Scratch) -> bool:
    """Whether a linear's weight (out, in) is what its stored weight makes, bit by bit."""
    return all(torch.equal(scratch.made(piece), weight[columns]) for columns, piece in stored.pieces())


def _nothing(like: Tensor) -> Tensor:
    """A tensor of the same size that takes one element's memory, and shows in whatever is computed with it."""
    return torch.full((), torch.nan, dtype=like.dtype, device=like.device).expand(like.shape)
