"""The CPU kernels compiled for several instruction sets: right on each, the same bits where promised."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from wisparse.kernels.cpu import build as cpu_build
from wisparse.kernels.cpu.gemv import choose_backend, compact_by_top_k, gather_gemv, keep_all, row_dots
from wisparse.kernels.cpu.kept_channels import KeptChannels
from wisparse.kernels.quantised.int4 import int4_rounded
from wisparse.kernels.reference import dropped_by_top_k

from .test_cpu_gemv import DTYPES, assert_product, assert_selects, random

TUNED_FOR = {"x86-64-v3": "-mtune=znver2"}
"""Left to itself, g++ fuses products and additions in some loops and not in others when it tunes for Zen."""
CHANNELS, COLUMNS = 203, 77
"""Neither a multiple of 8 rows nor of a vector."""


def compile_for(march: str, monkeypatch) -> None:
    """Compute with kernels for `march` from here on; skips where this CPU or this machine cannot."""
    if not cpu_build.runs(march):
        pytest.skip(f"this CPU is no {march}")
    monkeypatch.setenv(cpu_build.MARCH_VARIABLE, march)
    tuned = (TUNED_FOR[march],) if march in TUNED_FOR else ()
    monkeypatch.setattr(cpu_build, "FLAGS", (*cpu_build.FLAGS, *tuned))
    choose_backend("c++")


@pytest.fixture(params=["x86-64-v2", "x86-64-v3", "native"])
def march(request, compiled, monkeypatch) -> str:
    compile_for(request.param, monkeypatch)
    return request.param


def kept_rows(batch: int) -> KeptChannels:
    """Every channel, so that a row of x keeps the same ones in any batch."""
    return keep_all(random(batch, CHANNELS))


def of_rows(kept: KeptChannels, first: int, last: int) -> KeptChannels:
    """Rows [first, last) of the batch alone."""
    part = KeptChannels(kept.capacity, last - first)
    part.count = kept.count
    part.channels.copy_(kept.channels)
    part.values.copy_(kept.values[:, first:last])
    return part


def only(kept: KeptChannels, index: int) -> KeptChannels:
    """One of the kept channels alone."""
    part = KeptChannels(kept.capacity, kept.batch)
    part.count = 1
    part.channels.copy_(kept.channels[index : index + 1])
    part.values.copy_(kept.values[index : index + 1])
    return part


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 5])
def test_products_and_selections_are_right(march, dtype, batch):
    x, weight = random(batch, CHANNELS, dtype=dtype), random(CHANNELS, COLUMNS, dtype=dtype, seed=1)
    kept = compact_by_top_k(x, torch.ones(CHANNELS), 90)
    assert_selects(kept, x, dropped_by_top_k(x.float(), torch.ones(CHANNELS), 90))
    assert_product(kept, weight, gather_gemv(kept, weight))
    inputs, rows = random(batch, COLUMNS, dtype=dtype), weight.double()[kept.channels.long()]
    bound = (COLUMNS + 2) * 2.0**-24 * (rows.abs() @ inputs.double().abs().T)
    assert ((row_dots(inputs, weight, kept).double() - rows @ inputs.double().T).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_sum_has_one_order_whatever_stands_around_it(march, dtype, batch):
    kept, weight = kept_rows(batch), random(CHANNELS, COLUMNS, dtype=dtype, seed=1)
    product = gather_gemv(kept, weight)
    for columns in (1, 16, 33, 64):  # in the tail or not
        assert torch.equal(gather_gemv(kept, weight[:, :columns]), product[:, :columns])
        assert torch.equal(gather_gemv(kept, weight[:, -columns:]), product[:, -columns:])
    x = random(batch, COLUMNS, seed=2)
    dots = row_dots(x, weight, kept)
    for index in range(0, CHANNELS, 7):  # beside other rows or alone
        assert torch.equal(row_dots(x, weight, only(kept, index)), dots[index : index + 1])
    zeros = 128 - COLUMNS  # in the tail or not
    longer = torch.nn.functional.pad(x, (0, zeros)), torch.nn.functional.pad(weight, (0, zeros))
    assert torch.equal(row_dots(*longer, kept), dots)
    for row in range(batch):
        part = of_rows(kept, row, row + 1)
        assert torch.equal(gather_gemv(part, weight), product[row : row + 1])
        assert torch.equal(row_dots(x[row : row + 1], weight, part), dots[:, row : row + 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_same_bits_on_any_number_of_threads(march, dtype, batch):
    weight, rows = random(701, 3000, dtype=dtype), random(701, 501, dtype=dtype)
    kept, x = keep_all(random(batch, 701, seed=1)), random(batch, 501, seed=2)
    products, dots = [], []
    for threads in (1, 2, 3, 5, 1):
        torch.set_num_threads(threads)
        products.append(gather_gemv(kept, weight))
        dots.append(row_dots(x, rows, kept))
    assert all(torch.equal(product, products[0]) for product in products)
    assert all(torch.equal(dot, dots[0]) for dot in dots)


def test_all_machines_that_fuse_give_the_same_bits(compiled, monkeypatch):
    def results() -> list[Tensor]:
        found = []
        for dtype in DTYPES:
            for batch in range(1, 9):
                kept, weight = kept_rows(batch), random(CHANNELS, COLUMNS, dtype=dtype, seed=1)
                found += [gather_gemv(kept, weight), row_dots(random(batch, COLUMNS, seed=2), weight, kept)]
        return found

    native = results()
    compile_for("x86-64-v3", monkeypatch)  # skips where "native" may not fuse
    assert all(torch.equal(*pair) for pair in zip(native, results(), strict=True))


def test_the_last_groups_of_a_row_have_the_same_bits_on_all_machines(compiled, monkeypatch):
    """Scales are one to sixteen, which fill a vector or do not, and behind which nothing may be read."""

    def results() -> list[Tensor]:
        return [
            gather_gemv(kept_rows(batch), weight, by_integers=by_integers)
            for weight in (int4_rounded(random(CHANNELS, 8 * groups), 8, True) for groups in range(1, 17))
            for batch in (1, 3)
            for by_integers in (True, False)
        ]

    native = results()
    compile_for("x86-64-v3", monkeypatch)
    assert all(torch.equal(*pair) for pair in zip(native, results(), strict=True))


OLDER = {
    "default": {"march": "x86-64-v2", "onednn": "SSE41", "mkl": "SSE4_2"},
    "avx2": {"march": "x86-64-v3", "onednn": "AVX2", "mkl": "AVX2"},
}
"""CPUs as torch calls them, and what its libraries and our kernels call them."""
AGREEING = (
    "kernels/engine/test_engine.py::test_the_engine_continues_as_generate_does[llama-teal_uniform]",
    "kernels/engine/test_engine.py::test_a_bfloat16_step_rounds_to_bfloat16_in_attention_alone[True]",
    "method/running/test_apply.py::test_decoding_with_a_cache_equals_scoring_the_whole_sequence[llama]",
)


@pytest.mark.slow
@pytest.mark.parametrize("capability", OLDER)
def test_engine_hooks_and_scoring_agree_with_torch_of_an_older_cpu(compiled, capability):
    """A process of its own, since torch and its libraries read what a CPU has once, at the start."""
    names = OLDER[capability]
    if not cpu_build.runs(names["march"]):
        pytest.skip(f"this CPU is no {names['march']}")
    older = {"ATEN_CPU_CAPABILITY": capability, cpu_build.MARCH_VARIABLE: names["march"]}
    older |= {"ONEDNN_MAX_CPU_ISA": names["onednn"], "MKL_ENABLE_INSTRUCTIONS": names["mkl"]}
    tests = [str(Path(__file__).parents[2] / test) for test in AGREEING]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    ran = subprocess.run(command, env=os.environ | older, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    assert f"{len(AGREEING)} passed" in ran.stdout
