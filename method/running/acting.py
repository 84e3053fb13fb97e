"""What plans, engines and searches ask of a model: to have it for themselves, and at rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from weakref import WeakKeyDictionary

from torch import nn

from ..errors import UserError

PLAN, ENGINE, PLANNING = "a plan", "an engine", "the making of a plan"

_ACTING: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()
"""What acts on each model now. Beside the models, so that a copy of one is free."""
_LOCK = Lock()  # two threads may share a model


@contextmanager
def acting_on(model: nn.Module, what: str, beside: str | None = None) -> Iterator[None]:
    """Context in which `what` acts on a model, and nothing that would make it compute something else.

    beside: what may act on it already. Raises UserError where anything else does.
    """
    with _LOCK:
        there = _ACTING.setdefault(model, [])
        if others := [other for other in there if other != beside]:
            raise UserError(
                f"{others[0]} acts on this model already, and {what} within it would compute something else; "
                "end the first one's context before, or take a second copy of the model"
            )
        there.append(what)
    try:
        yield
    finally:
        with _LOCK:
            there.remove(what)


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Context in which the model neither drops out nor collects gradients of its weights."""
    training = {module: module.training for module in model.modules()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    model.requires_grad_(False)
    try:
        yield
    finally:
        for module, before in training.items():
            module.training = before
        for parameter in trained:
            parameter.requires_grad_(True)
