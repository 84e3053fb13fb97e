"""Signs in bits, and the negative products that weights have with an input: what a popcount counts."""

from __future__ import annotations

import torch
from torch import Tensor

BITS = 8


def packed_signs(weight: Tensor) -> Tensor:
    """Signs of (rows, channels): (rows, channels / 8 rounded up) uint8, channel i at bit i % 8 of its byte."""
    rows, channels = weight.shape
    bits = torch.zeros(rows, -(-channels // BITS) * BITS, dtype=torch.uint8, device=weight.device)
    bits[:, :channels] = weight < 0
    places = torch.arange(BITS, dtype=torch.uint8, device=weight.device)
    return (bits.view(rows, -1, BITS) << places).sum(dim=-1, dtype=torch.uint8)


def plus_minus(signs: Tensor, channels: int) -> Tensor:
    """Packed signs as (rows, channels) float32: -1 where a bit is set, else 1."""
    places = torch.arange(BITS, dtype=torch.uint8, device=signs.device)
    bits = (signs[..., None] >> places) & 1
    return 1.0 - 2.0 * bits.flatten(-2)[..., :channels].float()


def negative_products(x: Tensor, unpacked: Tensor) -> Tensor:
    """How many products x_i·w_i have unlike signs, (..., rows) float32, exact; a zero counts as positive.

    x: (..., channels); unpacked: `plus_minus` of the weights' signs. The sum of the products of signs is the
    positive ones less the negative ones.
    """
    signs = torch.where(x < 0, -1.0, 1.0)
    return (x.shape[-1] - signs @ unpacked.T) / 2.0
