"""Weights of a model that lie otherwise than its own methods take them: who holds them, what was done since.

An engine packs weights, a plan in rotated bases or in few bits replaces them. What would store or move them, or
load others, is refused meanwhile; what puts others in their place in another way is found at the next step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from ..errors import KernelError
from ..weight_samples import Samples, weight_samples

DOORS = {
    "save_pretrained": "save_pretrained",
    "state_dict": "state_dict",
    "load_state_dict": "load_state_dict",
    "_apply": "to, half, cuda and the like",
}
"""Methods of a model by which weights leave, change or move, and what a user calls them."""

Mark = tuple[nn.Parameter, object]
"""A parameter, and what of it must stay as it is."""


@dataclass(eq=False)
class Holder:
    """Who holds the weights, for as long as it is alive and has not let go."""

    who: str
    """Name for messages."""
    in_place: bool
    """Whether the numbers must lie where they are; blocks that are streamed to a GPU move."""
    parameters: dict[str, nn.Parameter]
    """The model's when it began to hold them."""


@dataclass(eq=False)
class _Held:
    samples: Samples
    """Samples of the model's own weights, as they were before anyone held them."""
    holders: WeakSet[Holder] = field(default_factory=WeakSet)
    marks: dict[str, Mark] = field(default_factory=dict)

    def who(self) -> str:
        return " and ".join(sorted({holder.who for holder in self.holders}))

    def marks_of(self, model: nn.Module) -> dict[str, Mark]:
        """What the parameters are now: their type, how often they were changed in place, and where they lie."""
        in_place = any(holder.in_place for holder in self.holders)
        return {name: (parameter, mark_of(parameter, in_place)) for name, parameter in model.named_parameters()}


def mark_of(parameter: nn.Parameter, in_place: bool) -> object:
    """What of a parameter is another once it was changed: its type, changes in place, and where it lies."""
    version = None if parameter.is_inference() else parameter._version
    return parameter.dtype, version, parameter.data_ptr() if in_place else None


_HELD: WeakKeyDictionary[nn.Module, _Held] = WeakKeyDictionary()
"""Beside the models, so that a copy of one is free."""
_BEHIND_DOORS: WeakKeyDictionary[nn.Module, _Held] = WeakKeyDictionary()
"""The same of a model and of its parts that can be stored by themselves, as its base model can."""


def hold(model: nn.Module, who: str, *, in_place: bool) -> Holder:
    """Begin to hold a model's weights. Raises KernelError where others hold them, and they were changed."""
    check_held(model)
    held = _HELD.get(model) or _Held(weight_samples(model))
    _HELD[model] = held
    holder = Holder(who, in_place, dict(model.named_parameters()))
    held.holders.add(holder)
    for part in _with_doors(model):
        _BEHIND_DOORS[part] = held
        for name in DOORS:
            if name not in vars(part) and hasattr(part, name):
                setattr(part, name, MethodType(_guarded(getattr(type(part), name)), part))
    remember(model)
    return holder


def own_samples(model: nn.Module) -> Samples:
    """Samples of a model's own weights, also while it is held and has others, or has them otherwise."""
    held = _HELD.get(model)
    return weight_samples(model) if held is None else held.samples


def samples_of_present(model: nn.Module, to_do: str) -> Samples:
    """Samples of a model's weights, from which something is about to be made that is to be for its own weights.

    to_do: what the error says to do at another time. Raises KernelError while the model has others in their
    place, as in another quantisation or in other bases.
    """
    held = _HELD.get(model)
    if others := sorted({one.who for one in (held.holders if held else ()) if not one.in_place}):
        raise KernelError(
            f"{' and '.join(others)} holds the model's weights, which are others meanwhile; {to_do} before or "
            "after that context"
        )
    return own_samples(model)


def let_go(model: nn.Module, holder: Holder) -> None:
    """Hold them no more, once they are as they were before."""
    held = _HELD[model]
    held.holders.discard(holder)
    if held.holders:
        remember(model)
        return
    del _HELD[model]
    for part in _with_doors(model):
        _BEHIND_DOORS.pop(part, None)
        for name in DOORS:
            vars(part).pop(name, None)


@contextmanager
def held(model: nn.Module, who: str) -> Iterator[None]:
    """Context in which weights are held: replace them in it, `remember` them, and put the others back."""
    holder = hold(model, who, in_place=False)
    try:
        yield
    finally:
        let_go(model, holder)


def remember(model: nn.Module) -> None:
    """Take a held model's weights, as they are now, for those that they have to stay."""
    held = _HELD[model]
    held.marks = held.marks_of(model)


def check_held(model: nn.Module) -> None:
    """Raise KernelError where a held model's weights are not those that were remembered."""
    held = _HELD.get(model)
    if held is None or not held.holders:
        return
    now = held.marks_of(model)
    for name, (parameter, state) in held.marks.items():
        if name not in now or now[name][0] is not parameter or now[name][1] != state:
            raise KernelError(
                f"{name} was changed while {held.who()} held the model's weights; change weights before or "
                "after that context, and make the plan anew"
            )


def check_same_parameters(model: nn.Module, holder: Holder) -> None:
    """Raise KernelError where a model has other parameters than those that a holder began to hold.

    It relies on a `check_held` before, by which they are those remembered: to go through a model takes a while.
    """
    now = _HELD[model].marks
    for name, parameter in holder.parameters.items():
        if name not in now or now[name][0] is not parameter:
            raise KernelError(
                f"{name} was replaced while {holder.who} reads the one before, as `quantised` does when it is "
                "entered or left; end that context after the engine's and begin it before"
            )


def _with_doors(model: nn.Module) -> list[nn.Module]:
    """The model, and those of its parts that transformers stores as models of their own."""
    parts = (part for part in model.modules() if part is not model)
    return [model, *(part for part in parts if hasattr(part, "save_pretrained"))]


def _guarded(method: Any) -> Any:
    """The method of a class, for a model that may be held, or is a copy of one that was."""

    @wraps(method)
    def guarded(self: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        held = _BEHIND_DOORS.get(self)
        if held is not None and held.holders:
            raise KernelError(
                f"{held.who()} holds the model's weights, which lie otherwise or are others meanwhile; call "
                f"{DOORS[method.__name__]} before or after that context"
            )
        return method(self, *arguments, **keywords)

    return guarded
