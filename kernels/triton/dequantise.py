"""Stored weights in few bits made floating-point numbers: one launch for all columns that are wanted."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantised.int8 import Int8Weight
from ..quantised.packed import FewBitsWeight
from .launch import RepeatedLaunch, blocks_of, check_tensor

TILE = 4096
"""Values of one program."""
COLUMNS = 256
"""Most outputs of one program."""
LEAST_COLUMNS = 32
"""Outputs from which on all of a program's may have the same scale of a row."""
RUN = 8
"""Neighbouring outputs of one thread, which loads no more than it stores at once in half precision."""


@triton.jit
def dequantise_kernel(
    values, row_scales, scales, zeros, rows, inner, outputs, bytes_row, values_row, scales_row,
    BITS: tl.constexpr, GROUP: tl.constexpr, ZEROS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    RUN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One tile of rows (inner, outputs); values and scales of a row lie so far behind those of the last one."""
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    first = tl.program_id(0) * COLUMNS
    column = first + tl.max_contiguous(tl.arange(0, COLUMNS), RUN)[None, :]
    live = (row < inner) & (column < outputs)
    if BITS == 8:
        stored = tl.load(values + row * values_row + column, mask=live, other=0).to(tl.float32)
        row_scale = tl.load(row_scales + row, mask=row < inner, other=0.0)
        column_scale = tl.load(scales + column, mask=column < outputs, other=0.0)
        value = stored * row_scale * column_scale  # in this order, as torch computes it: to the bit
    else:
        byte = first // 2 + tl.max_contiguous(tl.arange(0, COLUMNS // 2), RUN // 2)[None, :]
        pair = tl.load(values + row * values_row + byte, mask=(row < inner) & (byte < bytes_row), other=0)
        stored = tl.interleave(pair & 15, pair >> 4).to(tl.float32)
        if GROUP % COLUMNS == 0:  # one scale of a row is all that there is in a tile
            at, there = row * scales_row + first // GROUP, row < inner
        else:
            at, there = row * scales_row + column // GROUP, live
        if ZEROS:
            stored -= tl.load(zeros + at, mask=there, other=0).to(tl.float32)
        else:
            stored -= 8
        value = stored * tl.load(scales + at, mask=there, other=0.0).to(tl.float32)
    tl.store(rows + row * outputs + column, value.to(rows.dtype.element_ty), mask=live)


class Dequantisation:
    """Writes the values of a stored weight (in, out) into rows, as often as it is called."""

    def __init__(self, weight: FewBitsWeight) -> None:
        """weight: its tensors stay where they are from here on."""
        inner, outputs = self._shape = weight.shape
        if isinstance(weight, Int8Weight):
            self._tensors = weight.values, weight.row_scales, weight.column_scales, None
            form, scales_row = {"BITS": 8, "GROUP": 1, "ZEROS": False}, 0
        else:
            self._tensors = weight.values, None, weight.scales, weight.zeros
            form = {"BITS": 4, "GROUP": weight.group, "ZEROS": weight.zeros is not None}
            scales_row = weight.scales.stride(0)
        values = weight.values
        self._sizes = inner, outputs, values.shape[1], values.stride(0), scales_row
        columns = _columns(form["GROUP"])
        height = TILE // columns
        grid = blocks_of(outputs, columns), blocks_of(inner, height)
        self._launch = RepeatedLaunch(dequantise_kernel, grid, ROWS=height, COLUMNS=columns, RUN=RUN, **form)
        # Triton launches on the current GPU, which may be another one.
        self._device = torch.cuda.device(values.device) if values.is_cuda else nullcontext()

    def __call__(self, rows: Tensor) -> None:
        """Write the values into rows (in, out), contiguous, of any floating type: rounded once from float32.

        Raises KernelError for rows of another shape.
        """
        check_tensor("rows", rows, self._shape)
        with self._device:
            self._launch(*self._tensors, rows, *self._sizes)


def _columns(group: int) -> int:
    """Outputs of a program: as many as share a scale, where these are neither few nor many."""
    whole = group & -group
    return min(COLUMNS, whole) if whole >= LEAST_COLUMNS else COLUMNS
