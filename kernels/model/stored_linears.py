"""A model's linears while an engine reads their stored weights in few bits: they hold no others of their own.

A pass of the model, such as one over a prompt, computes with the stored values: a few rows are multiplied by
them as a decode step does it, for more some columns of a linear's weight are dequantised at a time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Lock
from types import MethodType
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import KernelError
from ..quantised.packed import FewBitsWeight
from .held_weights import mark_of
from .uninterrupted import uninterrupted

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers as wide as a number of so many bytes, to tell zeros by their signs."""


def _by_torch(weight: FewBitsWeight) -> Callable[[Tensor], None]:
    return weight.dequantise_into


@dataclass(frozen=True)
class StoredProducts:
    """How a device computes with stored weights."""

    dequantise: Callable[[FewBitsWeight], Callable[[Tensor], None]] = _by_torch
    """What writes a weight's values into contiguous rows (in, out), to the bit as `dequantise_into` does."""
    multiply: Callable[[Tensor, FewBitsWeight], Tensor] | None = None
    """Rows x (rows, in) times a weight, (rows, out) float32; None: there is no such kernel."""
    most_rows: int = 0
    """Rows up to which it multiplies faster than values can be made first."""


@dataclass(frozen=True)
class _Piece:
    """Some columns of a stored weight, and what writes their values into rows of this shape."""

    columns: slice
    shape: tuple[int, int]
    write: Callable[[Tensor], None]


class _Scratch:
    """Room for the dequantised values of one piece; to get memory anew takes as long as to fill it."""

    def __init__(self, dtype: torch.dtype, device: torch.device, products: StoredProducts) -> None:
        self._room = torch.empty(0, dtype=dtype, device=device)
        self._views: dict[tuple[int, int], Tensor] = {}
        self.products = products
        self.lock = Lock()
        """Held from `made` until its values were used: two threads may share a model."""

    def pieces(self, stored: FewBitsWeight) -> tuple[_Piece, ...]:
        """The pieces of a stored weight that are made after each other."""
        dequantise = self.products.dequantise
        return tuple(_Piece(columns, some.shape, dequantise(some)) for columns, some in stored.pieces())

    def made(self, piece: _Piece, kept: bool = False) -> Tensor:
        """(out, in) view of a piece's values, good until the next; kept: in memory of their own."""
        if kept:
            rows = self._room.new_empty(piece.shape)
        elif (rows := self._views.get(piece.shape)) is None:
            rows = self._laid_out(piece.shape)
        piece.write(rows)
        return rows.T

    @torch.inference_mode(False)
    def _laid_out(self, shape: tuple[int, int]) -> Tensor:
        values = math.prod(shape)
        if self._room.numel() < values:
            self._room = self._room.new_empty(values)
            self._views.clear()
        return self._views.setdefault(shape, self._room[:values].view(shape))


class _StoredForward:
    """What a taken linear computes: from its stored weight, as long as nobody gives it another."""

    def __init__(self, linear: nn.Linear, stored: FewBitsWeight, scratch: _Scratch, shared: bool) -> None:
        self._linear, self._stored, self._scratch = linear, stored, scratch
        self._pieces = scratch.pieces(stored)
        self._parameter = linear.weight
        self._dropped = not shared and _makes(self._pieces, linear.weight, scratch)
        if self._dropped:
            linear.weight.data = _nothing(linear.weight)
        self._mark = mark_of(linear.weight, in_place=True)
        linear.forward = self

    def __call__(self, input: Tensor) -> Tensor:  # its name in nn.Linear
        weight, bias = self._linear.weight, self._linear.bias
        if weight is not self._parameter or mark_of(weight, in_place=True) != self._mark:
            raise KernelError(
                "weights of this model were replaced or changed while an engine reads its stored ones; close "
                "the engine first"
            )
        kept = torch.is_grad_enabled() and input.requires_grad  # a gradient is computed with the values later
        if not kept and self._is_for_products(input):
            return self._multiplied(input)
        with self._scratch.lock:
            parts = [
                F.linear(input, self._scratch.made(piece, kept), None if bias is None else bias[piece.columns])
                for piece in self._pieces
            ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _is_for_products(self, input: Tensor) -> bool:
        """Whether it is a few rows of the linear's own dtype; of others torch says what it makes of them."""
        weight, most = self._linear.weight, self._scratch.products.most_rows
        if not most or input.dtype is not weight.dtype or torch.is_autocast_enabled(weight.device.type):
            return False
        return 0 < input.numel() <= most * input.shape[-1]

    def _multiplied(self, input: Tensor) -> Tensor:
        """The product with a few rows, rounded once from float32."""
        rows = input.reshape(-1, input.shape[-1]).contiguous()
        found = self._scratch.products.multiply(rows, self._stored)
        if self._linear.bias is not None:
            found += self._linear.bias
        return found.to(input.dtype).view(*input.shape[:-1], -1)

    def give_back(self) -> None:
        """Let the linear compute with its own weight, made again if it was dropped and there is no other."""
        weight = self._linear.weight
        if self._dropped and weight is self._parameter and bool(weight[0, 0].isnan()):
            weight.data = self._values()
        del self._linear.forward

    def _values(self) -> Tensor:
        """(out, in) of the stored weight, as the linear held it."""
        values = torch.empty_like(self._parameter.data, memory_format=torch.contiguous_format)
        with self._scratch.lock:
            for piece in self._pieces:
                values[piece.columns] = self._scratch.made(piece)
        return values

    @torch.inference_mode(False)
    @torch.no_grad()
    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[[Tensor], Tensor]:
        """The forward of a copied linear: the copy holds the values itself, and computes as any other."""
        if self._dropped:
            copy.deepcopy(self._parameter, memo).data = self._values()
        return MethodType(nn.Linear.forward, copy.deepcopy(self._linear, memo))

    def __reduce__(self) -> NoReturn:
        raise KernelError(
            "an engine reads stored weights of this model, and its linears hold none; save it before or after "
            "that context"
        )


@dataclass(eq=False)
class _Taken:
    stored: Mapping[str, FewBitsWeight]
    back: ExitStack = field(default_factory=ExitStack)
    """Gives all linears back."""
    engines: int = 0


_TAKEN: WeakKeyDictionary[nn.Module, _Taken] = WeakKeyDictionary()
"""Beside the models, so that a copy of one is free."""


@torch.inference_mode(False)
@torch.no_grad()
def take_linears(
    model: nn.Module,
    linears: Mapping[str, nn.Linear],
    stored: Mapping[str, FewBitsWeight],
    products: StoredProducts,
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
        scratch = _Scratch(some.dtype, some.device, products)
        embeddings = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
        taken = _Taken(stored)
        try:
            for name, linear in linears.items():
                shared = any(linear.weight is weight for weight in embeddings)
                taken.back.callback(_StoredForward(linear, stored[name], scratch, shared).give_back)
        except BaseException:  # whoever is interrupted here has no engine that would give them back
            with uninterrupted():
                taken.back.close()
            raise
        _TAKEN[model] = taken
    taken.engines += 1


@torch.inference_mode(False)
@torch.no_grad()
def give_back_linears(model: nn.Module) -> None:
    """Undo one `take_linears`; the last one makes the weights again that were dropped."""
    taken = _TAKEN[model]
    taken.engines -= 1
    if not taken.engines:
        with uninterrupted():
            del _TAKEN[model]
            taken.back.close()


def is_taken(model: nn.Module) -> bool:
    """Whether linears of the model compute with stored weights now, and may hold no others."""
    return model in _TAKEN


def check_not_taken(model: nn.Module) -> None:
    """Raise KernelError for what would read a model's own weights, where an engine has dropped them."""
    if is_taken(model):
        raise KernelError(
            "an engine reads stored weights of this model, and its linears hold none; close that one first, or "
            "give this one the same weights"
        )


def _makes(pieces: tuple[_Piece, ...], weight: Tensor, scratch: _Scratch) -> bool:
    """Whether a linear's weight (out, in) is what its stored weight makes, bit by bit."""
    bits = BITS[weight.element_size()]
    return all(
        torch.equal(scratch.made(piece).view(bits), weight[piece.columns].view(bits)) for piece in pieces
    )


def _nothing(like: Tensor) -> Tensor:
    """A tensor of the same size that takes one element's memory, and shows in whatever is computed with it."""
    return torch.full((), torch.nan, dtype=like.dtype, device=like.device).expand(like.shape)
