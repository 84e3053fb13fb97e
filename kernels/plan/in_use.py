"""Bases that a model's weights are in, for as long as contexts rely on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import KernelError
from ..model.decoder import Decoder
from ..model.held_weights import check_held, hold, let_go, remember

Change = Callable[[Tensor], Tensor]
"""A weight (out, in) float64 in its new basis."""
Store = Callable[[str, nn.Linear, Change], Tensor]
"""The weight of a linear, by name, after a change, as the model stores it."""
B = TypeVar("B")


def exact(_: str, linear: nn.Linear, change: Change) -> Tensor:
    """A `Store` of weights that are no quantised ones."""
    return change(linear.weight.data.double()).to(linear.weight.dtype)


class Places(ExitStack):
    """Takes back what was put in place of a model's parameters, and other things done to it, when it ends."""

    def put(self, module: nn.Module, name: str, value: Tensor) -> None:
        """Put a value in place of a module's parameter."""
        self.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, nn.Parameter(value.contiguous(), requires_grad=False))


@dataclass
class _InUse(Generic[B]):
    """Bases that a model's weights are in, None for its own, and how many contexts rely on that."""

    bases: B | None
    contexts: int = 0
    places: Places = field(default_factory=Places)


class BasesInUse(Generic[B]):
    """One kind of bases, of all models."""

    def __init__(self, who: str) -> None:
        """Who: what holds weights that are turned, for messages."""
        self._who = who
        self._of_models: WeakKeyDictionary[nn.Module, _InUse[B]] = WeakKeyDictionary()

    def of(self, model: nn.Module) -> B | None:
        """Bases that the model's weights are in now; None: its own."""
        return self._of_models[model].bases if model in self._of_models else None

    @contextmanager
    def relied_on(
        self, model: nn.Module, bases: B | None, turn: Callable[[Decoder, B, Places], None]
    ) -> Iterator[None]:
        """Context in which the model's weights are in these bases, None for its own, and stay so.

        turn: puts the model's own weights into them. After the last context of the same bases the weights are
        as before, bit by bit. Raises KernelError for weights that are not in memory or were changed meanwhile,
        and where a context relies on other bases.
        """
        in_use = self._of_models.setdefault(model, _InUse(bases))
        if in_use.bases != bases:
            raise KernelError(
                "a plan or an engine acts on this model in other bases of its weights; end its context before, "
                "or take a second copy of the model"
            )
        in_use.contexts += 1
        try:
            if in_use.contexts == 1 and bases is not None:
                self._put_in_place(Decoder.of(model), in_use, turn)
            yield
            if bases is not None:
                check_held(model)
        finally:
            in_use.contexts -= 1
            if not in_use.contexts:
                del self._of_models[model]
                in_use.places.close()

    def _put_in_place(
        self, decoder: Decoder, in_use: _InUse[B], turn: Callable[[Decoder, B, Places], None]
    ) -> None:
        model = decoder.model
        if any(parameter.is_meta for parameter in model.parameters()):
            raise KernelError(f"{self._who} needs all weights in memory; set model.offload=never")
        in_use.places.callback(let_go, model, hold(model, self._who, in_place=False))
        with torch.inference_mode(False), torch.no_grad():
            turn(decoder, in_use.bases, in_use.places)
        remember(model)
