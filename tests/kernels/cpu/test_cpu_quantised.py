"""Row-skipping products of weights in 8 and 4 bits, at shapes that fill no byte, no vector and no tile."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from wisparse.kernels.cpu.gemv import choose_backend, compact_by_threshold, gather_gemv, keep_all
from wisparse.kernels.cpu.kept_channels import KeptChannels
from wisparse.kernels.quantised.int4 import Int4Weight, int4_rounded
from wisparse.kernels.quantised.int8 import Int8Weight, int8_rounded
from wisparse.kernels.quantised.packed import separate, side_by_side

from .test_cpu_gemv import random
from .test_cpu_instruction_sets import compile_for

FORMATS = {
    "int8": int8_rounded,
    "groups of 64": lambda weight: int4_rounded(weight, 64, symmetric=True),
    "groups of 64 with zero points": lambda weight: int4_rounded(weight, 64, symmetric=False),
    "groups that end inside of vectors": lambda weight: int4_rounded(weight, 12, symmetric=False),
    "groups of an odd number": lambda weight: int4_rounded(weight, 3, symmetric=True),
}
COLUMNS = {"int8": (1, 17, 300), "groups of 64": (64, 192), "groups of 64 with zero points": (64, 1600)}
CASES = [
    (name, channels, columns)
    for name in FORMATS
    for columns in COLUMNS.get(name, (12, 33 if "odd" in name else 60))
    for channels in (1, 211)
]


def stored(name: str, channels: int, columns: int) -> Int8Weight | Int4Weight:
    rows = random(channels, 1, seed=7).exp()
    return FORMATS[name](random(channels, columns, seed=1) * rows)


def exact(weight: Int8Weight | Int4Weight) -> Tensor:
    """The weight's values in float64, where products of the parts are not rounded."""
    if isinstance(weight, Int8Weight):
        return weight.row_scales.double()[:, None] * weight.values.double() * weight.column_scales.double()
    return weight.dequantised().double()  # a value of 4 bits times one of 11 is exact in float32


def assert_product(kept: KeptChannels, weight: Int8Weight | Int4Weight, out: Tensor) -> None:
    """`out` is the float64 product, up to what float32 loses; scales add three roundings to each term."""
    values, rows = kept.values.double(), exact(weight)[kept.channels.long()]
    bound = (kept.count + 5) * 2.0**-24 * (values.abs().T @ rows.abs())
    assert ((out.double() - values.T @ rows).abs() <= bound).all()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("name", "channels", "columns"), CASES)
def test_products_are_those_of_float64(implementation, name, channels, columns, batch):
    x, weight = random(batch, channels), stored(name, channels, columns)
    kept = compact_by_threshold(x, torch.full((channels,), 0.7))
    assert_product(kept, weight, gather_gemv(kept, weight))
    everything = keep_all(x)
    assert_product(everything, weight, gather_gemv(everything, weight))


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_one_result_for_any_threads_columns_beside_and_machine_that_fuses(compiled, monkeypatch, name):
    def results() -> list[Tensor]:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for batch in (1, 4):
                kept = keep_all(random(batch, 701, seed=3))
                found.append(gather_gemv(kept, weight))
                parts = [gather_gemv(kept, part) for part in separate(side_by_side(weight, weight))]
                assert all(torch.equal(part, found[-1]) for part in parts)
        assert all(torch.equal(one, found[index % 2]) for index, one in enumerate(found))
        return found

    weight = stored(name, 701, 1536 if "64" in name else 1500)
    native = results()
    compile_for("x86-64-v2", monkeypatch)
    for kept in (keep_all(random(2, 701, seed=3)),):
        assert_product(kept, weight, gather_gemv(kept, weight))
    results()
    monkeypatch.undo()
    compile_for("x86-64-v3", monkeypatch)  # skips where "native" may not fuse
    assert all(torch.equal(*pair) for pair in zip(native, results(), strict=True))


def test_nothing_of_a_dropped_row_is_read(implementation):
    kept = compact_by_threshold(torch.tensor([[1.0, 0.0, 1.0]]), torch.full((3,), 0.5))
    eight, four = int8_rounded(random(3, 20)), int4_rounded(random(3, 20), 4, symmetric=True)
    eight.row_scales[1] = four.scales[1] = torch.nan
    for weight in (eight, four):
        assert gather_gemv(kept, weight).isfinite().all()
        assert not gather_gemv(keep_all(torch.ones(1, 3)), weight).isfinite().any()


def test_projections_side_by_side_separate_into_what_they_were():
    for name in FORMATS:
        weights = [stored(name, 5, 192), stored(name, 5, 384)]
        for before, after in zip(weights, separate(side_by_side(*weights)), strict=True):
            assert before.tensors().keys() == after.tensors().keys()
            for part in before.tensors():
                assert torch.equal(before.tensors()[part], after.tensors()[part])


def four() -> Int4Weight:
    return int4_rounded(random(8, 12), 4, symmetric=False)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (lambda: int8_rounded(random(7, 4)), "8 rows"),
        (lambda: replace(int8_rounded(random(8, 4)), row_scales=torch.ones(7)), r"row_scales .* \(8,\)"),
        (lambda: replace(int8_rounded(random(8, 4)), column_scales=torch.ones(4).double()), "column_scales"),
        (lambda: replace(four(), scales=torch.ones(8, 5).half()), "5 groups of scales do not divide 12"),
        (lambda: replace(four(), scales=torch.ones(8, 3)), "^scales .* torch.float16"),
        (lambda: replace(four(), zeros=torch.ones(3, 8, dtype=torch.uint8).T), "zeros .* adjacent columns"),
        (lambda: replace(four(), zeros=torch.ones(8, 6, dtype=torch.uint8)[:, :3]), "equally far apart"),
        (lambda: replace(four(), values=four().values.to("meta")), "CPU tensor"),
    ],
)
def test_bad_weights_are_named_in_one_line(weight, message):
    choose_backend("automatic")
    with pytest.raises(ValueError, match=message) as caught:
        gather_gemv(keep_all(torch.ones(1, 8)), weight())
    assert "\n" not in str(caught.value)
