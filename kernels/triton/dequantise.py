"""Stored weights in few bits made floating-point numbers: one launch for all columns that are wanted."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantised.int8 import Int8Weight
from ..quantised.packed import FewBitsWeight
from .launch import blocks_of, check_tensor, launch

ROWS, COLUMNS = 16, 256
"""Input channels and outputs of one program."""


@triton.jit
def dequantise_kernel(
    values, row_scales, scales, zeros, rows, inner, outputs, values_row, scales_row,
    BITS: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One tile of rows (inner, outputs); values and scales of a row lie so far behind those of the last one."""
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    live = (row < inner) & (column < outputs)
    if BITS == 8:
        stored = tl.load(values + row * values_row + column, mask=live, other=0).to(tl.float32)
        row_scale = tl.load(row_scales + row, mask=row < inner, other=0.0)
        column_scale = tl.load(scales + column, mask=column < outputs, other=0.0)
        value = stored * row_scale * column_scale  # in this order, as torch computes it: to the bit
    else:
        byte = (tl.program_id(0) * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2))[None, :]
        pair = tl.load(values + row * values_row + byte, mask=(row < inner) & (2 * byte < outputs), other=0)
        stored = tl.interleave(pair & 15, pair >> 4).to(tl.float32)
        at = row * scales_row + column // GROUP
        if ZEROS:
            stored -= tl.load(zeros + at, mask=live, other=0).to(tl.float32)
        else:
            stored -= 8
        value = stored * tl.load(scales + at, mask=live, other=0.0).to(tl.float32)
    tl.store(rows + row * outputs + column, value.to(rows.dtype.element_ty), mask=live)


def dequantise(weight: FewBitsWeight, rows: Tensor) -> None:
    """Write a weight's values into rows (in, out), contiguous, of any floating type: rounded once from float32.

    Raises KernelError for rows of another shape.
    """
    inner, outputs = weight.shape
    check_tensor("rows", rows, (inner, outputs))
    if isinstance(weight, Int8Weight):
        tensors, form, scales_row = (weight.row_scales, weight.column_scales, None), (8, 1, False), 0
    else:
        tensors = (None, weight.scales, weight.zeros)
        form, scales_row = (4, weight.group, weight.zeros is not None), weight.scales.stride(0)
    # Triton launches on the current GPU, which may be another one.
    with torch.cuda.device(rows.device) if rows.is_cuda else nullcontext():
        launch(
            dequantise_kernel,
            (blocks_of(outputs, COLUMNS), blocks_of(inner, ROWS)),
            weight.values, *tensors, rows, inner, outputs, weight.values.stride(0), scales_row,
            BITS=form[0], GROUP=form[1], ZEROS=form[2], ROWS=ROWS, COLUMNS=COLUMNS,
        )  # fmt: skip
