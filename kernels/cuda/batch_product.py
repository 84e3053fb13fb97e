"""Products of a few tokens together by one top-k that they share: CUDA C++ for compute capability 9.0 on.

As `product`, with the rows of a weight read once for all tokens. What the tokens keep is decided by their
magnitudes together, against the smallest score that is kept (`triton.shared_lists`, `triton.select`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import KernelError
from ..triton.launch import blocks_of, check_tensor, power_of_two
from ..triton.shared_lists import SharedTopK
from .compiled import launch
from .product import squares_of, suits_cuda_products
from .product_tile import LANES, SHARED_BYTES, CUDATile

MOST_ROWS = 8
"""Tokens whose sums a thread has registers for."""


def batch_tile_fits(tile: CUDATile, batch: int, channels: int, widths: tuple[int, ...]) -> bool:
    """Whether a thread block has shared memory for its share; gate and up, two widths, have a list each."""
    lists, rows = 2 if len(widths) == 2 else 1, max(2, power_of_two(batch))
    share = int(tile.constants(channels, 0)["SHARE"])
    entries = blocks_of(share, tile.warps * LANES) * tile.warps * LANES
    own = batch if lists == 2 else blocks_of(batch, tile.cluster)
    sums = 4 * tile.columns * (2 * tile.warps + tile.cluster * lists * own)
    return share * rows * 2 + lists * (entries * 2 + tile.warps * 4) + sums + 16 <= SHARED_BYTES


def batch_product(
    x: Tensor, rule: SharedTopK, weight: Tensor, widths: tuple[int, ...], out: Tensor, tile: CUDATile,
    bias: Tensor | None = None, pdl: bool = False,
) -> None:  # fmt: skip
    """Out (batch, sum of widths) float32 = x · weight (in, sum of widths) + bias, for up to three projections.

    x (batch, in) in the weight's dtype. Raises KernelError for tensors that do not fit.
    """
    check_tensor("out", out, (len(x), sum(widths)), torch.float32)
    constants = {"STORE": 1, "HIDDEN": 0, "RESIDUAL": 0, "WIDTH": 0, "MAXIMUM": 0}
    _start(x, rule, weight, widths, tile, constants, (bias, out, None, None), pdl)


def batch_neurons(
    x: Tensor, rule: SharedTopK, weight: Tensor, hidden: Tensor, tile: CUDATile, *, magnitudes: Tensor,
    maximum: bool, pdl: bool = False,
) -> None:  # fmt: skip
    """Hidden (batch, ffn) = silu(x · gate) · (x · up), rounded where the model rounds; weight (in, 2 · ffn).

    magnitudes (ffn,) float32: |hidden| of all rows together, by their maximum or their sum. Raises KernelError
    for tensors that do not fit.
    """
    ffn = weight.shape[1] // 2
    check_tensor("hidden", hidden, (len(x), ffn), x.dtype)
    check_tensor("magnitudes", magnitudes, (ffn,), torch.float32)
    constants = {"STORE": 0, "HIDDEN": 1, "RESIDUAL": 0, "WIDTH": ffn, "MAXIMUM": int(maximum)}
    _start(x, rule, weight, (ffn, ffn), tile, constants, (None, hidden, None, magnitudes), pdl)


def batch_onto(
    x: Tensor, rule: SharedTopK, weight: Tensor, residual: Tensor, squares: Tensor, tile: CUDATile,
    pdl: bool = False,
) -> None:  # fmt: skip
    """Add x · weight (in, out) to residual (batch, out) float32, whose parts' squares are (batch, ⌈out / 32⌉).

    Raises KernelError for tensors that do not fit.
    """
    check_tensor("residual", residual, (len(x), weight.shape[1]), torch.float32)
    check_tensor("squares", squares, (len(x), squares_of(weight.shape[1])), torch.float32)
    constants = {"STORE": 0, "HIDDEN": 0, "RESIDUAL": 1, "WIDTH": 0, "MAXIMUM": 0}
    _start(x, rule, weight, (weight.shape[1],), tile, constants, (None, residual, squares, None), pdl)


def _start(
    x: Tensor, rule: SharedTopK, weight: Tensor, widths: tuple[int, ...], tile: CUDATile,
    constants: dict[str, object], targets: tuple[Tensor | None, ...], pdl: bool,
) -> None:  # fmt: skip
    (batch, channels), lists = x.shape, len(widths)
    if not suits_cuda_products(x.dtype, widths, channels) or channels % 8 or not 2 <= batch <= MOST_ROWS:
        raise KernelError(
            f"CUDA products of a batch take 2 to {MOST_ROWS} rows in bfloat16 or float16, of multiples of 8 "
            f"channels and columns, not {x.dtype} {tuple(x.shape)} → {widths}"
        )
    check_tensor("x", x, (batch, channels), weight.dtype)
    check_tensor("the weight", weight, (channels, sum(widths)))
    check_tensor("magnitudes", rule.magnitudes, (channels,), torch.float32)
    check_tensor("score weights", rule.score_weights, (lists, channels), torch.float32)
    check_tensor("smallest", rule.smallest, (lists, 1), torch.float32)
    if not batch_tile_fits(tile, batch, channels, widths):
        raise KernelError(
            f"{channels} channels of {batch} rows do not fit into {SHARED_BYTES} bytes; take a larger cluster"
        )
    blocks = tile.blocks(widths[:1] if constants["HIDDEN"] else widths)
    constants = {
        **constants,
        **tile.constants(channels, sum(widths)),
        "BATCH": batch,
        "ROWS": max(2, power_of_two(batch)),
        "WIDTHS": "{" + ",".join(map(str, widths)) + "}",
        "FLOAT16": int(x.dtype is torch.float16),
    }
    arguments = (weight, x, rule.magnitudes, rule.score_weights, rule.smallest, *targets)
    launch("batch_product", constants, blocks, tile.warps * LANES, arguments, pdl)
