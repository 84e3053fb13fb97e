"""Products of one token that list their kept channels themselves: CUDA C++ for compute capability 9.0 on.

A thread block reads the activation, keeps a list of the channels above their thresholds in its shared memory,
and goes through the rows of these alone. Thread blocks of a cluster share the channels of one tile of columns
and add their sums through each other's shared memory. Against lists that a launch before has made
(`triton.compact`) this saves that launch, and against partial sums in global memory two journeys to the second
cache.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..errors import KernelError
from ..triton.launch import blocks_of, check_tensor
from .compiled import launch
from .product_tile import LANES, SHARED_BYTES, CUDATile
from .stored_weight import HALF, CUDAWeight, Storage

log = logging.getLogger(__name__)

HIDDEN_BY = {"silu": 1, "relu": 2}
"""Numbers of activations in activation.h."""
MOST_CHANNELS = 1 << 16
"""A channel has 16 bits in a list."""


@dataclass(frozen=True)
class Normed:
    """RMSNorm of the residual stream, computed by every thread block for itself."""

    residual: Tensor
    """(1, channels) float32"""
    squares: Tensor
    """(1, parts) float32: sums of squares of parts of the residual stream."""
    gain: Tensor
    """(channels,) in the weight's dtype, to which x is rounded as the model rounds it."""
    epsilon: float

    @property
    def constants(self) -> dict[str, object]:
        """Constants that the kernel is compiled for."""
        return {"NORM": 1, "EPSILON": f"{self.epsilon:.9e}f", "SQUARES": self.squares.numel()}

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Tensors in the order in which the kernel takes them; None for those that it does not read."""
        return self.residual, self.squares, self.gain

    @property
    def dtype(self) -> torch.dtype:
        """Data type that x is rounded to."""
        return self.gain.dtype


@dataclass(frozen=True)
class Given:
    """The activation itself."""

    x: Tensor
    """(1, channels) in the weight's dtype."""

    @property
    def constants(self) -> dict[str, object]:
        """Constants that the kernel is compiled for."""
        return {"NORM": 0, "EPSILON": "0.0f", "SQUARES": 1}

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Tensors in the order in which the kernel takes them; None for those that it does not read."""
        return self.x, None, None

    @property
    def dtype(self) -> torch.dtype:
        """Data type of x."""
        return self.x.dtype


Source = Normed | Given
"""Where a product's activation comes from."""


def runs_cuda_products(device: torch.device) -> bool:
    """Whether the device has clusters, and CUDA C++ can be compiled for it here."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9 and _has_bindings()


@cache
def _has_bindings() -> bool:
    try:
        import cuda.bindings  # noqa: F401  looked for, not used here
    except ImportError:
        log.warning(
            "cuda-bindings, a part of torch's CUDA build, is missing: products run over lists that launches of "
            "their own make, which is slower; pip install cuda-bindings"
        )
        return False
    return True


def suits_cuda_products(
    dtype: torch.dtype, widths: tuple[int, ...], channels: int, storage: Storage = HALF
) -> bool:
    """Whether activations are in half precision, rows whole vectors of 16 bytes, channels within 16 bits."""
    return dtype in (torch.bfloat16, torch.float16) and storage.suits(widths) and channels <= MOST_CHANNELS


def cuda_product(
    source: Source,
    bounds: Tensor | None,
    weight: Tensor | CUDAWeight,
    widths: tuple[int, ...],
    out: Tensor,
    tile: CUDATile,
    bias: Tensor | None = None,
    smallest: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Out (1, sum of widths) float32 = x · weight (in, sum of widths) + bias, for up to three projections.

    bounds (projections, in) float32: a projection reads the rows of channels with |x| ≥ bound; NaN is kept.
    None: all are. With smallest (projections, 1) float32 bounds are weights w of a score, and |x|·w ≥ smallest
    decides. Raises KernelError for tensors that do not fit.
    """
    check_tensor("out", out, (1, sum(widths)), torch.float32)
    constants = {"STORE": 1, "HIDDEN": 0, "RESIDUAL": 0, "WIDTH": 0}
    _start(source, (bounds, smallest), weight, widths, tile, constants, (bias, out, None), pdl)


def cuda_neurons(
    source: Source,
    bounds: Tensor | None,
    weight: Tensor | CUDAWeight,
    hidden: Tensor,
    tile: CUDATile,
    bias: Tensor | None = None,
    smallest: Tensor | None = None,
    nonlinearity: str = "silu",
    pdl: bool = False,
) -> None:
    """Hidden (1, ffn) = activated (x · gate) · (x · up), rounded where the model rounds; weight (in, 2 · ffn).

    bounds (2, in) float32 of gate and up, bias (2 · ffn,) of both, smallest as for `cuda_product`. Raises
    KernelError for tensors that do not fit.
    """
    ffn = weight.shape[1] // 2
    check_tensor("hidden", hidden, (1, ffn), source.dtype)
    constants = {"STORE": 0, "HIDDEN": HIDDEN_BY[nonlinearity], "RESIDUAL": 0, "WIDTH": ffn}
    _start(source, (bounds, smallest), weight, (ffn, ffn), tile, constants, (bias, hidden, None), pdl)


def cuda_onto(
    source: Source,
    bounds: Tensor | None,
    weight: Tensor | CUDAWeight,
    residual: Tensor,
    squares: Tensor,
    tile: CUDATile,
    bias: Tensor | None = None,
    smallest: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Add x · weight (in, out) + bias to residual (1, out) float32; squares (1, ⌈out / 32⌉) are of its parts.

    bounds (1, in) float32, bias (out,), smallest as for `cuda_product`. Raises KernelError for tensors that do
    not fit.
    """
    check_tensor("residual", residual, (1, weight.shape[1]), torch.float32)
    check_tensor("squares", squares, (1, squares_of(weight.shape[1])), torch.float32)
    constants = {"STORE": 0, "HIDDEN": 0, "RESIDUAL": 1, "WIDTH": 0}
    _start(
        source, (bounds, smallest), weight, (weight.shape[1],), tile, constants, (bias, residual, squares), pdl
    )


def squares_of(columns: int) -> int:
    """Parts in which `cuda_onto` leaves the residual stream's sum of squares."""
    return blocks_of(columns, LANES)


def _start(
    source: Source,
    rules: tuple[Tensor | None, Tensor | None],
    weight: Tensor | CUDAWeight,
    widths: tuple[int, ...],
    tile: CUDATile,
    constants: dict[str, object],
    targets: tuple[Tensor | None, ...],
    pdl: bool,
) -> None:
    stored = weight if isinstance(weight, CUDAWeight) else CUDAWeight(weight)
    channels, row = stored.shape
    if targets[0] is not None:
        check_tensor("bias", targets[0], (row,), source.dtype)
    _check(source, *rules, stored, widths, tile)
    blocks = tile.blocks(widths[:1] if constants["HIDDEN"] else widths)
    constants = {
        **constants,
        **tile.constants(channels, row),
        **source.constants,
        **stored.constants,
        "WIDTHS": "{" + ",".join(map(str, widths)) + "}",
        "BIAS": int(targets[0] is not None),
        "TOP_K": int(rules[1] is not None),
        "KEEP_ALL": int(rules[0] is None),
        "FLOAT16": int(source.dtype is torch.float16),
    }
    arguments = (*stored.tensors, *source.tensors, *rules, *targets)
    launch("product", constants, blocks, tile.warps * LANES, arguments, pdl)


def check_source(source: Source, channels: int, dtype: torch.dtype) -> None:
    """Raises KernelError unless the activation has so many channels, in this dtype once it is normalised."""
    x, squares, gain = source.tensors
    check_tensor("x", x, (1, channels), dtype if gain is None else torch.float32)
    if gain is not None:
        check_tensor("gain", gain, (channels,), dtype)
        check_tensor("squares", squares, (1, squares.shape[-1]), torch.float32)


def _check(
    source: Source,
    bounds: Tensor | None,
    smallest: Tensor | None,
    weight: CUDAWeight,
    widths: tuple[int, ...],
    tile: CUDATile,
) -> None:
    (channels, _), storage = weight.shape, weight.storage
    dtype = weight.values.dtype if storage.bits == 16 else source.dtype
    if not suits_cuda_products(dtype, widths, channels, storage) or not 1 <= len(widths) <= 3:
        raise KernelError(
            f"CUDA products of {storage} take one to three projections in bfloat16 or float16, of multiples of "
            f"{storage.multiple} columns and at most {MOST_CHANNELS} channels, not {dtype} {channels} → "
            f"{widths}"
        )
    weight.check(widths)
    if bounds is not None:
        check_tensor("bounds", bounds, (len(widths), channels), torch.float32)
    if smallest is not None:
        check_tensor("smallest", smallest, (len(widths), 1), torch.float32)
    check_source(source, channels, dtype)
    if not tile.fits(channels, widths, storage):
        raise KernelError(
            f"lists of {channels} channels of {storage} do not fit into {SHARED_BYTES} bytes, or not this "
            "tile; take a larger cluster, an even unroll, and columns that groups divide"
        )
