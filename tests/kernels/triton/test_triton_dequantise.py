"""Stored weights that a launch makes floating-point numbers: the same bits as torch makes."""

import pytest
import torch
from wisparse.kernels.errors import KernelError
from wisparse.kernels.quantised.int4 import int4_rounded
from wisparse.kernels.quantised.int8 import int8_rounded
from wisparse.kernels.triton.dequantise import dequantise

from ..triton_cases import DEVICE, random

FORMATS = {
    "int8": int8_rounded,
    "int4": lambda weight: int4_rounded(weight, 5, symmetric=True),
    "int4 with zero points": lambda weight: int4_rounded(weight, 10, symmetric=False),
}
# The interpreter cuts bfloat16 off where a GPU rounds.
DTYPES = (torch.float32, torch.float16, *((torch.bfloat16,) if DEVICE.type == "cuda" else ()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 10), (37, 530), (16, 260)])
@pytest.mark.parametrize("name", FORMATS)
def test_values_are_those_of_torch_to_the_bit(name, shape, dtype):
    stored = FORMATS[name](random(*shape, scale=0.3))
    expected = torch.empty(shape, dtype=dtype, device=DEVICE)
    stored.dequantise_into(expected)
    rows = torch.full_like(expected, torch.nan)
    dequantise(stored, rows)
    assert torch.equal(rows, expected)


@pytest.mark.parametrize("name", FORMATS)
def test_some_columns_are_those_of_the_whole(name):
    stored = FORMATS[name](random(37, 530, scale=0.3))
    some = {"int8": slice(7, 270), "int4": slice(10, 520), "int4 with zero points": slice(20, 530)}[name]
    rows = torch.empty(37, some.stop - some.start, device=DEVICE)
    dequantise(stored.columns(some), rows)
    assert torch.equal(rows, stored.dequantised()[:, some])


def test_rows_of_another_shape_are_refused():
    with pytest.raises(KernelError, match=r"rows has shape \(4, 10\), expected \(3, 10\)"):
        dequantise(int8_rounded(random(3, 10)), torch.empty(4, 10, device=DEVICE))
