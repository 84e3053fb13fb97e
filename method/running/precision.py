"""Precision of products and of new tensors: TF32 where what is made is noisier anyway, else float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def coarse_products() -> Iterator[None]:
    """Context in which a GPU multiplies float32 matrices in TF32, several times as fast: for gradients."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Context in which new tensors are float32, whatever a user has told torch.

    Numbers that a plan is made of would silently be of another precision.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
