"""Errors that kernels and the decode engine raise when they are handed something they cannot execute."""

from __future__ import annotations


class KernelError(ValueError):
    """A tensor of the wrong shape, dtype, layout or device, or a plan for another model; says what to do."""
