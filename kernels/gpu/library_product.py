"""Dense products of several rows by torch, which is cuBLAS on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from ..triton.launch import INTERPRETED


def library_product(x: Tensor, weight: Tensor, out: Tensor, pdl: bool = False) -> None:
    """Out (batch, columns) float32 = x · weight (in, columns), of x (batch, in) in the weight's dtype.

    pdl: of no use here; what comes behind it waits for all of it.
    """
    if x.dtype == torch.float32:
        torch.mm(x, weight, out=out)
    elif INTERPRETED and not x.is_cuda:  # on a CPU torch knows no other type of output
        torch.mm(x.float(), weight.float(), out=out)
    else:
        torch.mm(x, weight, out_dtype=torch.float32, out=out)
