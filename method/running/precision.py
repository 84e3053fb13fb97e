"""Products in less than float32's precision, where what they make is noisier than that anyway."""

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
