"""Copies of weights in 4 bits, with which a product ranks neurons (Prox, arXiv 2607.27591)."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import pad

from .int4 import Int4Weight, int4_rounded

TOGETHER = 2
"""Values of a byte."""


def proxy_of(weight: Tensor, group: int) -> Int4Weight:
    """What a weight (out, in) is in 4 bits, symmetric: (in, out), zeros behind out to whole groups and bytes.

    group: outputs that share a scale. Raises KernelError as `int4_rounded` does.
    """
    rows = weight.detach().T
    return int4_rounded(pad(rows, (0, -rows.shape[1] % math.lcm(group, TOGETHER))), group, symmetric=True)
