"""Rows of attention over chosen groups and of whole steps with it, timed by a clock that calls each once."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from wisparse.kernels.bench import gpu_heads
from wisparse.kernels.bench.gpu_attention import AttentionWorkload
from wisparse.kernels.bench.gpu_heads import HeadSpeed, attention_row, step_row
from wisparse.kernels.bench.parts.drawn import filled_cache, random_weights
from wisparse.kernels.bench.parts.model_shapes import MODEL_SHAPES
from wisparse.kernels.bench.parts.shared_masks import SharedMask
from wisparse.kernels.cuda.attention import CUDAAttentionTile
from wisparse.kernels.gpu import cuda_tiles

from ..kernels.conftest import cuda_kernels_run  # noqa: F401 - a fixture
from ..kernels.triton_cases import DEVICE

TILE = CUDAAttentionTile(warps=1, cluster=2, unroll=2, queries=2)
ROW = partial(HeadSpeed, "a device", "a shape", peak_gb_s=1e3)


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_kernels_run")
def test_rows_say_what_was_read(monkeypatch):
    monkeypatch.setattr(cuda_tiles, "runs_cuda_products", lambda _: True)
    shape = replace(
        MODEL_SHAPES["llama3.1-8b"], blocks=2, hidden=64, ffn=64, heads=4, kv_heads=2, head_dim=32,
        vocabulary=32, windows=(None, None),
    )  # fmt: skip

    def once(call, _):
        call(0)
        return 2.0

    workload = AttentionWorkload(shape, torch.float16, DEVICE, 2, 40)
    whole, half = (attention_row(ROW, workload, kept, TILE, once) for kept in (2, 1))
    assert (half.part, half.batch, half.context, half.groups, half.kept) == ("attention", 2, 40, 2, 1)
    assert whole.gb_s == 2 * half.gb_s == pytest.approx(2 * 2 * 2 * 40 * 32 * 2 / 2.0 / 1e3)
    weights = random_weights(shape, 16, 16, torch.float16, DEVICE)
    cache = filled_cache(shape, torch.float16, DEVICE, 39, 2, spare=1)

    def step(step):
        step(torch.zeros(2, dtype=torch.int64, device=DEVICE))
        cache.length.fill_(39)
        return 1e-3

    tiles = {1: TILE, 2: TILE}
    whole, half = (step_row(ROW, weights, cache, kept, tiles=tiles, clock=step) for kept in (2, 1))
    assert (half.part, half.context, half.kept, half.tile) == ("step", 40, 1, gpu_heads.tile_name(TILE))
    assert whole.gb_s - half.gb_s == pytest.approx(
        2 * 2 * 40 * 32 * 2 / 1e3
    )  # one group of one block, two rows
    masked = step_row(ROW, weights, cache, 1, SharedMask("ffn", 0.5), tiles, step)
    assert (masked.masked, masked.sparsity, masked.kept) == ("ffn", 0.5, 1)
    assert half.gb_s - masked.gb_s == pytest.approx(2 * 3 * 64 * 64 * 2 / 2 / 1e3)  # half of the MLPs' weights
