"""What plans, engines and searches ask of a model: to have it for themselves, as it is written, and at rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import count
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ..errors import UserError

PLAN, ENGINE, PLANNING = "a plan", "an engine", "the making of a plan"

_ACTING: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()
"""What acts on each model now. Beside the models, so that a copy of one is free."""
_CONTEXTS = count(1)
_LOCK = Lock()  # two threads may share a model


@contextmanager
def acting_on(model: nn.Module, what: str, beside: str | None = None) -> Iterator[None]:
    """Context in which `what` acts on a model, and nothing that would make it compute something else.

    beside: what may act on it already. Raises UserError where anything else does, and for a compiled model.
    """
    check_not_compiled(model)
    with _LOCK:
        there = _ACTING.setdefault(model, [])
        if others := [other for other in there if other != beside]:
            raise _within(others[0], what)
        there.append(what)
    try:
        yield
    finally:
        with _LOCK:
            there.remove(what)


def check_no_plan(model: nn.Module, what: str) -> None:
    """Raise UserError for a model that a plan acts on, where `what` is begun within its context."""
    if PLAN in _ACTING.get(model, ()):
        raise _within(PLAN, what)


def _within(other: str, what: str) -> UserError:
    return UserError(
        f"{other} acts on this model already, and {what} within it would compute something else; "
        "end the first one's context before, or take a second copy of the model"
    )


def check_not_compiled(model: nn.Module) -> None:
    """Raise UserError for what is no model, and for one that torch.compile has compiled as a whole or in part.

    What was compiled before hooks are put on goes on without them: the model would be dense under any plan.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"{model!r} is no model; load one with AutoModelForCausalLM.from_pretrained")
    for name, module in model.named_modules():
        if module._compiled_call_impl is not None or hasattr(module.forward, "_torchdynamo_orig_callable"):
            raise UserError(
                f"{name or 'the model'} was compiled, and compiled code does not see the hooks of plans; give "
                "the model as it was before torch.compile"
            )


@contextmanager
def compiled_anew(*modules: nn.Module) -> Iterator[None]:
    """Context in which torch.compile compiles anew what runs modules; after it the old code serves again.

    Nothing on a model tells of a function that was compiled around it, and compiled code does not ask whether
    hooks are those that it has seen. It does ask for the code of a module's forward, and for texts it reads.
    """
    before = [vars(module).get("forward") for module in modules]
    context = f"context {next(_CONTEXTS)}"
    for module in modules:
        module.forward = _in_context(module.forward, context)
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward


def _in_context(original: Callable[..., Any], context: str) -> Callable[..., Any]:
    @wraps(original)
    def forward(*arguments: Any, **keywords: Any) -> Any:
        return original(*arguments, **keywords) if context else None

    return forward


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
