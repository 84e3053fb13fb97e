"""Precision of products and of new tensors: TF32 where what is made is noisier anyway, else their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

AUTOCAST = ("cpu", "cuda")
"""Devices on which a user may have torch choose types by operation."""


@contextmanager
def coarse_products() -> Iterator[None]:
    """Context in which a GPU multiplies float32 matrices in TF32, several times as fast.

    For gradients, which are means over noise far above that, and for whole models that a search compares, each
    sparse in every block. Not for the error of one block, where a first step's is near the rounding of TF32.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@contextmanager
def own_precision() -> Iterator[None]:
    """Context in which new tensors are float32 and a model computes in its own type, whatever torch was told.

    Numbers that a plan is made of would silently be of another precision: of a default, or of autocast. Within
    inference mode there would be no gradients to make them of, and on a default device they would be apart.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), ExitStack() as types:
            for device in AUTOCAST:
                types.enter_context(torch.autocast(device, enabled=False))
            if torch.get_default_device().type != "cpu":
                types.enter_context(torch.device("cpu"))
            yield
    finally:
        torch.set_default_dtype(before)
