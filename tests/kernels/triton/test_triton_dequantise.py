"""Stored weights that a launch makes floating-point numbers: the same bits as torch makes."""

import pytest
import torch
from wisparse.kernels.errors import KernelError
from wisparse.kernels.quantised.int4 import int4_rounded
from wisparse.kernels.quantised.int8 import int8_rounded
from wisparse.kernels.quantised.packed import FewBitsWeight
from wisparse.kernels.triton.dequantise import Dequantisation

from ..triton_cases import DEVICE, random

FORMATS = {
    "int8": int8_rounded,
    "int4": lambda weight: int4_rounded(weight, 5, symmetric=True),
    "int4 with zero points": lambda weight: int4_rounded(weight, 10, symmetric=False),
}
# The interpreter cuts bfloat16 off where a GPU rounds.
DTYPES = (torch.float32, torch.float16, *((torch.bfloat16,) if DEVICE.type == "cuda" else ()))


def check_bits(stored: FewBitsWeight, dtypes: tuple[torch.dtype, ...] = DTYPES) -> None:
    """Twice in each dtype: Triton looks for what it has compiled only once."""
    writes = Dequantisation(stored)
    for dtype in dtypes * 2:
        expected = torch.empty(stored.shape, dtype=dtype, device=DEVICE)
        stored.dequantise_into(expected)
        rows = torch.full_like(expected, torch.nan)
        writes(rows)
        assert torch.equal(rows, expected)


@pytest.mark.parametrize("shape", [(3, 10), (37, 530), (16, 260)])
@pytest.mark.parametrize("name", FORMATS)
def test_values_are_those_of_torch_to_the_bit(name, shape):
    check_bits(FORMATS[name](random(*shape, scale=0.3)))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("group", "outputs"), [(32, 96), (96, 480), (128, 384), (512, 1024), (16, 400)])
def test_values_whose_scale_many_neighbours_share(group, outputs, symmetric):
    check_bits(int4_rounded(random(131, outputs, scale=0.3), group, symmetric), DTYPES[:1])


def test_rows_that_begin_elsewhere():
    """What Triton compiled for rows that begin at a multiple of 16 bytes would not do."""
    stored = int8_rounded(random(5, 34))
    room, writes = torch.empty(172, device=DEVICE), Dequantisation(stored)
    for begin in (0, 1, 0, 1):
        rows = room[begin : begin + 170].view(5, 34)
        rows.fill_(torch.nan)
        writes(rows)
        assert torch.equal(rows, stored.dequantised())


@pytest.mark.parametrize("name", FORMATS)
def test_some_columns_are_those_of_the_whole(name):
    stored = FORMATS[name](random(37, 530, scale=0.3))
    some = {"int8": slice(7, 270), "int4": slice(10, 520), "int4 with zero points": slice(20, 530)}[name]
    rows = torch.empty(37, some.stop - some.start, device=DEVICE)
    Dequantisation(stored.columns(some))(rows)
    assert torch.equal(rows, stored.dequantised()[:, some])


def test_rows_of_another_shape_are_refused():
    with pytest.raises(KernelError, match=r"rows has shape \(4, 10\), expected \(3, 10\)"):
        Dequantisation(int8_rounded(random(3, 10)))(torch.empty(4, 10, device=DEVICE))
