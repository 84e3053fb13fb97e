"""How weights are handed to the compiled kernels: `Weight` of types.h, field by field."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from ..errors import KernelError
from ..quantised.int4 import Int4Weight
from ..quantised.int8 import Int8Weight
from ..quantised.stored import StoredWeight

AnyWeight = Tensor | StoredWeight
"""A weight (in, out) in floating point or in few bits."""
DTYPES = (torch.float32, torch.bfloat16)
FLOAT, BFLOAT16, INT8, INT4, INT8_BY_INTEGERS, INT4_BY_INTEGERS = range(6)
"""`Stored` of types.h."""


class WeightFields(ctypes.Structure):
    """A weight's sizes and addresses; the tensors that it was made from must outlive it."""

    _fields_ = (
        ("values", c_void_p),
        ("stored", c_int64),
        ("stride", c_int64),
        ("rows", c_int64),
        ("columns", c_int64),
        ("row_scales", c_void_p),
        ("column_scales", c_void_p),
        ("scales", c_void_p),
        ("zeros", c_void_p),
        ("group", c_int64),
        ("scale_stride", c_int64),
    )


def fields_of(weight: AnyWeight, by_integers: bool = False) -> WeightFields:
    """Fields of a weight that `check_weight` has passed. by_integers: see `gemv.gather_gemv`."""
    if isinstance(weight, Tensor):
        stored = BFLOAT16 if weight.dtype is torch.bfloat16 else FLOAT
        return WeightFields(weight.data_ptr(), stored, weight.stride(0) * weight.element_size(), *weight.shape)
    rows, columns = weight.shape
    fields = WeightFields(weight.values.data_ptr(), 0, weight.values.stride(0), rows, columns)
    if isinstance(weight, Int8Weight):
        fields.stored = INT8_BY_INTEGERS if by_integers else INT8
        fields.row_scales, fields.column_scales = weight.row_scales.data_ptr(), weight.column_scales.data_ptr()
        return fields
    fields.stored = INT4_BY_INTEGERS if by_integers else INT4
    fields.scales, fields.scale_stride = weight.scales.data_ptr(), weight.scales.stride(0)
    fields.zeros = None if weight.zeros is None else weight.zeros.data_ptr()
    fields.group = columns // weight.scales.shape[1]
    return fields


def check_weight(weight: AnyWeight, rows: int) -> None:
    """Raise KernelError for a weight that the kernels do not read, or of another number of rows."""
    if isinstance(weight, Tensor):
        if not (is_matrix(weight) and weight.shape[0] == rows):
            raise KernelError(
                f"the weight must be a CPU tensor of {rows} rows, one for each channel, float32 or bfloat16, "
                f"with adjacent columns (stored in × out, no transposed view); {description(weight)}"
            )
    elif not isinstance(weight, Int8Weight | Int4Weight):
        raise KernelError(f"the kernels read weights in int8 and int4, not in {weight.format}")
    else:
        _check_stored(weight, rows)


def _check_stored(weight: Int8Weight | Int4Weight, rows: int) -> None:
    if weight.shape[0] != rows:
        raise KernelError(f"the weight must have {rows} rows, one for each channel; it has {weight.shape[0]}")
    outputs = weight.shape[1]
    if isinstance(weight, Int8Weight):
        expected = {
            "values": ((rows, outputs), torch.int8),
            "row_scales": ((rows,), torch.float32),
            "column_scales": ((outputs,), torch.float32),
        }
    else:
        groups = weight.scales.shape[1] if weight.scales.ndim == 2 else 0
        if not groups or outputs % groups:
            raise KernelError(f"{groups} groups of scales do not divide {outputs} outputs in 4 bits")
        expected = {
            "values": ((rows, (outputs + 1) // 2), torch.uint8),
            "scales": ((rows, groups), torch.float16),
            "zeros": ((rows, groups), torch.uint8),
        }
    for name, tensor in weight.tensors().items():
        shape, dtype = expected[name]
        if not (tensor.is_cpu and tensor.dtype is dtype and tensor.shape == shape and adjacent(tensor)):
            raise KernelError(
                f"{name} of a weight in {weight.format} must be a CPU tensor {shape} {dtype} with adjacent "
                f"columns; {description(tensor)}"
            )
    zeros = weight.zeros if isinstance(weight, Int4Weight) else None
    if zeros is not None and zeros.stride(0) != weight.scales.stride(0):
        raise KernelError("scales and zero points of a weight in int4 must have rows equally far apart")


def is_matrix(tensor: Tensor) -> bool:
    """Whether it is a matrix on the CPU, of a dtype that the kernels know, with adjacent columns."""
    return tensor.is_cpu and tensor.dtype in DTYPES and tensor.dim() == 2 and adjacent(tensor)


def adjacent(tensor: Tensor) -> bool:
    """Whether the elements of a row lie beside each other."""
    return tensor.stride(-1) == 1 or tensor.shape[-1] == 1


def description(tensor: Tensor) -> str:
    """What a tensor is, for messages."""
    return f"it is {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}, strides {tensor.stride()}"
