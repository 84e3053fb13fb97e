"""Products of the compiled decoder in plain PyTorch: in floating point, and torch's fastest in 8 and 4 bits.

Weights in few bits are rounded to nearest as users of torch round them: this is what speed is compared with.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.errors import KernelError

GROUP = 128
"""Inputs of one output that share a scale and a zero point in 4 bits."""
INNER_TILES = 8
"""Layout of torch's packed weights in 4 bits."""

MakeProduct = Callable[[Tensor, Tensor | None], nn.Module]
"""Makes the product with a weight (out, in) and a bias."""


class FloatProduct(nn.Module):
    """x · weightᵀ + bias."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = fixed(weight), fixed(bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in) → (batch, out)."""
        return F.linear(x, self.weight, self.bias)


class Int8Product(nn.Module):
    """8 bits with a scale for each output, which multiplies the sum; Inductor reads them in its own kernel."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        scales = weight.abs().amax(dim=1).float().clamp_min(torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("weight", (weight / scales[:, None]).round_().clamp_(-127, 127).to(torch.int8))
        self.register_buffer("scales", scales.to(weight.dtype))
        self.bias = fixed(bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in) → (batch, out)."""
        found = F.linear(x, self.weight.to(x.dtype)) * self.scales
        return found if self.bias is None else found + self.bias


class Int4Product(nn.Module):
    """4 bits in groups of 128 inputs with zero points: torch's own packed product, on a GPU in bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        if weight.dtype is not torch.bfloat16 or weight.device.type != "cuda" or weight.shape[1] % GROUP:
            raise KernelError(
                f"torch's product in 4 bits takes bfloat16 on a GPU and multiples of {GROUP} inputs, not "
                f"{weight.dtype} {tuple(weight.shape)} on {weight.device.type}; leave out compiled-decoder-int4"
            )
        values, parameters = rounded_to_4_bits(weight)
        packed = (values[:, 0::2] << 4 | values[:, 1::2]).contiguous()
        self.register_buffer("weight", torch.ops.aten._convert_weight_to_int4pack(packed, INNER_TILES))
        self.register_buffer("parameters_of_groups", parameters.to(torch.bfloat16))
        self.bias = fixed(bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, in) → (batch, out)."""
        found = torch.ops.aten._weight_int4pack_mm(x, self.weight, GROUP, self.parameters_of_groups)
        return found if self.bias is None else found + self.bias


def rounded_to_4_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values (out, in) uint8 from 0 to 15, and (in / GROUP, out, 2): w ≈ (q − 8) · scale + offset."""
    grouped = weight.float().unflatten(1, (-1, GROUP))
    least, greatest = grouped.amin(dim=2, keepdim=True), grouped.amax(dim=2, keepdim=True)
    scales = ((greatest - least) / 15).clamp_min(1e-6)
    values = ((grouped - least) / scales).round().clamp(0, 15).to(torch.uint8).flatten(1)
    parameters = torch.cat([scales, least + 8 * scales], dim=2).transpose(0, 1).contiguous()
    return values, parameters


def fixed(weight: Tensor | None) -> nn.Parameter | None:
    """A parameter that is not trained, which a graph reads at its address."""
    return None if weight is None else nn.Parameter(weight.data, requires_grad=False)
