"""Norms that give what they give in another basis; what reads it has weights in that basis."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True, eq=False)
class _Turned:
    """The hook of a norm."""

    basis: Tensor

    def __call__(self, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output @ self.basis


def turn_output(norm: nn.Module, basis: Tensor) -> RemovableHandle:
    """Let a norm give its output times a basis (hidden, hidden), until the handle is removed."""
    return norm.register_forward_hook(_Turned(basis))


def basis_of(norm: nn.Module) -> Tensor | None:
    """The basis (hidden, hidden) that a norm's output is in; None: its own."""
    return next((hook.basis for hook in norm._forward_hooks.values() if isinstance(hook, _Turned)), None)
