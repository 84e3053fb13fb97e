"""Row-skipping products of weights in 8 and 4 bits, at shapes that fill no byte, no vector and no tile."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from wisparse.kernels.cpu import build as cpu_build
from wisparse.kernels.cpu.gemv import choose_backend, compact_by_threshold, gather_gemv, keep_all
from wisparse.kernels.cpu.kept_channels import KeptChannels
from wisparse.kernels.quantised.int4 import Int4Weight, int4_rounded, unpacked
from wisparse.kernels.quantised.int8 import Int8Weight, int8_rounded
from wisparse.kernels.quantised.packed import separate, side_by_side

from .test_cpu_gemv import random
from .test_cpu_instruction_sets import compile_for, of_rows

FORMATS = {
    "int8": int8_rounded,
    "groups of 64": lambda weight: int4_rounded(weight, 64, symmetric=True),
    "groups of 64 with zero points": lambda weight: int4_rounded(weight, 64, symmetric=False),
    "groups that end inside of vectors": lambda weight: int4_rounded(weight, 12, symmetric=False),
    "groups of an odd number": lambda weight: int4_rounded(weight, 3, symmetric=True),
}
LARGEST_FACTOR = 127 * 257
"""The same as in kernels/cpu/sources/products/integers.h."""
MACHINES = (("x86-64-v2", ()), ("x86-64-v3", ()), ("x86-64-v3", ("-mno-avx2",)), ("x86-64-v4", ()))
"""Each multiplies integers in another way. Without AVX2 they are plain C, as on a CPU other than x86."""
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


def rounding(kept: KeptChannels, weight: Int8Weight | Int4Weight) -> Tensor:
    """Half a unit of the factors, times the magnitudes of what they multiply: (batch, out) float64.

    A factor is an activation times its row's or group's scale. A unit is the largest of those of a run of rows,
    so at most the largest of all, over LARGEST_FACTOR.
    """
    channels, values = kept.channels.long(), kept.values.double().abs()
    if isinstance(weight, Int8Weight):
        peaks = (values * weight.row_scales.double()[channels, None]).amax(0)
        magnitudes = weight.values[channels].double().abs().sum(0) * weight.column_scales.double()
        return peaks[:, None] * magnitudes / LARGEST_FACTOR / 2
    group = weight.shape[1] // weight.scales.shape[1]
    scales = weight.scales.double()[channels].repeat_interleave(group, dim=1)
    zeros = torch.full_like(weight.scales, 8) if weight.zeros is None else weight.zeros
    levels = unpacked(weight.values, weight.shape[1]).double()[channels]
    magnitudes = (levels - zeros.double()[channels].repeat_interleave(group, dim=1)).abs().sum(0)
    peaks = torch.stack([(values[:, row, None] * scales).amax(0) for row in range(kept.batch)])
    return peaks * magnitudes / LARGEST_FACTOR / 2


def assert_product(
    kept: KeptChannels, weight: Int8Weight | Int4Weight, out: Tensor, by_integers: bool = False
) -> None:
    """`out` is the float64 product, up to what float32 and rounded factors lose.

    Scales add roundings to each term.
    """
    values, rows = kept.values.double(), exact(weight)[kept.channels.long()]
    bound = (kept.count + 5) * 2.0**-24 * (values.abs().T @ rows.abs())
    if by_integers:
        bound += rounding(kept, weight)
    assert ((out.double() - values.T @ rows).abs() <= bound).all()


@pytest.mark.parametrize("by_integers", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("name", "channels", "columns"), CASES)
def test_products_are_those_of_float64(implementation, name, channels, columns, batch, by_integers):
    x, weight = random(batch, channels), stored(name, channels, columns)
    for kept in (compact_by_threshold(x, torch.full((channels,), 0.7)), keep_all(x)):
        assert_product(kept, weight, gather_gemv(kept, weight, by_integers=by_integers), by_integers)


def results(weight: Int8Weight | Int4Weight, by_integers: bool) -> list[Tensor]:
    """Products of one row and of four, the same on any number of threads and with other columns beside."""
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for batch in (1, 4):
            kept = keep_all(random(batch, 701, seed=3))
            found.append(gather_gemv(kept, weight, by_integers=by_integers))
            parts = separate(side_by_side(weight, weight))
            assert all(
                torch.equal(gather_gemv(kept, part, by_integers=by_integers), found[-1]) for part in parts
            )
    assert all(torch.equal(one, found[index % 2]) for index, one in enumerate(found))
    return found[:2]


@pytest.mark.slow
def test_one_result_for_any_threads_columns_beside_and_machine(compiled, monkeypatch):
    weights = {name: stored(name, 701, 1536 if "64" in name else 1500) for name in FORMATS}
    kept = keep_all(random(2, 701, seed=3))
    native = {name: (results(weight, False), results(weight, True)) for name, weight in weights.items()}
    for march, without in MACHINES:
        if not cpu_build.runs(march):
            continue  # what is left is tested
        with monkeypatch.context() as patched:
            patched.setattr(cpu_build, "FLAGS", (*cpu_build.FLAGS, *without))
            compile_for(march, patched)
            for name, weight in weights.items():
                floats, integers = results(weight, False), results(weight, True)
                assert all(torch.equal(*pair) for pair in zip(native[name][1], integers, strict=True)), march
                if march == "x86-64-v2":  # it cannot fuse
                    assert_product(kept, weight, gather_gemv(kept, weight))
                else:
                    assert all(torch.equal(*pair) for pair in zip(native[name][0], floats, strict=True)), march


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_of_a_batch_is_the_product_of_that_row(compiled, name):
    kept, weight = keep_all(random(3, 301)), stored(name, 301, 192 if "64" in name else 60)
    for by_integers in (False, True):
        together = gather_gemv(kept, weight, by_integers=by_integers)
        for row in range(3):
            alone = gather_gemv(of_rows(kept, row, row + 1), weight, by_integers=by_integers)
            assert torch.equal(alone, together[row : row + 1])


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_not_finite_makes_its_own_row_of_x_so(implementation, name, wrong):
    x, weight = random(2, 211), stored(name, 211, 192 if "64" in name else 60)
    x[1, 150] = wrong
    products = gather_gemv(keep_all(x), weight, by_integers=True)
    assert products[0].isfinite().all()
    assert not products[1].isfinite().all()


def test_beside_a_very_large_activation_integers_lose_a_share_of_its_own_product(compiled):
    # As in trained models, where single channels are hundreds of times as large as all others.
    x, weight = random(1, 576), stored("groups of 64", 576, 192)
    x[0, 77] = 1000 * x.abs().max()
    kept = keep_all(x)
    out = gather_gemv(kept, weight, by_integers=True)
    assert_product(kept, weight, out, by_integers=True)
    exactly = x.double() @ exact(weight)
    assert (out - exactly).norm() < 2e-4 * exactly.norm()


def test_nothing_of_a_dropped_row_is_read(implementation):
    kept = compact_by_threshold(torch.tensor([[1.0, 0.0, 1.0]]), torch.full((3,), 0.5))
    eight, four = int8_rounded(random(3, 20)), int4_rounded(random(3, 20), 4, symmetric=True)
    eight.row_scales[1] = four.scales[1] = torch.nan
    for weight, by_integers in itertools.product((eight, four), (False, True)):
        assert gather_gemv(kept, weight, by_integers=by_integers).isfinite().all()
        assert not gather_gemv(keep_all(torch.ones(1, 3)), weight, by_integers=by_integers).isfinite().any()


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
