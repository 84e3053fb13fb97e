"""Attention of CUDA C++: the source as it is, emulated on a CPU, and on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from wisparse.kernels.bench.parts.model_shapes import MODEL_SHAPES
from wisparse.kernels.cuda.attention import CUDAAttentionTile, cuda_attention
from wisparse.kernels.errors import KernelError
from wisparse.kernels.gpu import cuda_tiles
from wisparse.kernels.gpu.step_tiles import Auto
from wisparse.kernels.model.static_cache import StaticCache
from wisparse.kernels.triton.attention.new_token import HeadNorms
from wisparse.kernels.triton.attention.selection import Selection

from ..triton.attention.test_triton_attention import expected, make_cache, make_norms
from ..triton_cases import DEVICE, TOLERANCE, random, relative_error

pytestmark = pytest.mark.usefixtures("cuda_kernels_run")
SMALL = CUDAAttentionTile(warps=1, cluster=2, unroll=2, queries=2)


def case(
    heads: int, kv_heads: int, head_dim: int, length: int, dtype: torch.dtype = torch.float16, first: int = 0
) -> tuple[Tensor, Tensor, StaticCache]:
    """Two partial sums of q, k and v, their bias, and a cache of 40 slots, NaN where there is no token."""
    width = (heads + 2 * kv_heads) * head_dim
    cache = make_cache(1, kv_heads, head_dim, 40, length, dtype, first=[first])
    for slots in (cache.keys, cache.values):
        slots[..., :first, :], slots[..., length:, :] = float("nan"), float("nan")
    return random(2, 1, width), random(width, seed=1, dtype=dtype), cache


def attended(sums: Tensor, bias: Tensor | None, cache: StaticCache, heads: int, tile: CUDAAttentionTile,
             window: int | None = None, norms: HeadNorms | None = None,
             selection: Selection | None = None) -> Tensor:  # fmt: skip
    x = torch.empty(1, heads * cache.keys.shape[-1], device=DEVICE, dtype=cache.keys.dtype)
    cuda_attention(sums, bias, cache, 0, window, tile, norms=norms, selection=selection, x_out=x)
    return x


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tile", "heads", "kv_heads", "head_dim", "length", "window", "first"),
    [
        (SMALL, 4, 1, 64, 37, None, 0),  # several steps, the last not full
        (SMALL, 4, 1, 64, 37, 16, 0),
        (SMALL, 4, 1, 64, 37, 16, 30),  # padding that reaches into the window
        (SMALL, 4, 1, 64, 33, None, 5),
        (SMALL, 2, 2, 64, 0, None, 0),
        (replace(SMALL, warps=2, cluster=1, unroll=4), 2, 2, 32, 21, None, 0),
        (replace(SMALL, warps=2, cluster=1, queries=4), 7, 1, 64, 39, None, 38),  # 4 and 3 heads a thread block
        (replace(SMALL, warps=1, cluster=3, unroll=4, queries=8), 7, 1, 128, 30, None, 0),
        (replace(SMALL, warps=2, cluster=2, unroll=4, queries=8), 4, 1, 128, 20, 64, 0),
        (replace(SMALL, unroll=8), 3, 3, 16, 18, None, 1),
        (SMALL, 1, 1, 256, 9, None, 0),
    ],
)
def test_against_float64(
    tile: CUDAAttentionTile,
    heads: int,
    kv_heads: int,
    head_dim: int,
    length: int,
    window: int | None,
    first: int,
) -> None:
    """Odd lengths, empty caches, windows, padding, and one, four and seven query heads a key-value head."""
    sums, bias, cache = case(heads, kv_heads, head_dim, length, first=first)
    exact, new = expected(sums, bias, cache, heads, window)
    x = attended(sums, bias, cache, heads, tile, window)
    assert relative_error(x, exact) < TOLERANCE[torch.float16]
    for slots, fresh in zip((cache.keys, cache.values), new[0], strict=True):
        assert relative_error(slots[0, 0, :, length], fresh) < TOLERANCE[torch.float16]
        assert slots[0, 0, :, length + 1 :].isnan().all()
    assert torch.equal(x, attended(sums, bias, cache, heads, tile, window))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tile", "heads", "kv_heads", "head_dim"),
    [
        (SMALL, 4, 2, 128),  # a head's columns in two warps, which take it in turns
        (replace(SMALL, warps=4, cluster=1, unroll=4, queries=4), 7, 1, 128),
        (replace(SMALL, warps=3), 2, 1, 64),
        (SMALL, 2, 2, 32),
        (replace(SMALL, unroll=1), 3, 3, 16),
        (replace(SMALL, warps=2), 1, 1, 256),
    ],
)
def test_norms_of_heads(tile: CUDAAttentionTile, heads: int, kv_heads: int, head_dim: int) -> None:
    """Queries and keys have gains of their own, behind a bias; values stay as they are."""
    sums, bias, cache = case(heads, kv_heads, head_dim, 9)
    norms = make_norms(cache)
    exact, new = expected(sums, bias, cache, heads, None, norms)
    x = attended(sums, bias, cache, heads, tile, None, norms)
    assert relative_error(x, exact) < TOLERANCE[torch.float16]
    for slots, fresh in zip((cache.keys, cache.values), new[0], strict=True):
        assert relative_error(slots[0, 0, :, 9], fresh) < TOLERANCE[torch.float16]
    assert torch.equal(x, attended(sums, bias, cache, heads, tile, None, norms))
    with pytest.raises(KernelError, match="the gain of queries is"):
        attended(sums, bias, cache, heads, tile, None, replace(norms, query=norms.query.float()))


def test_in_bfloat16() -> None:
    """There is no bias, and the context has fewer steps than there are thread blocks."""
    sums, _, cache = case(4, 2, 64, 11, torch.bfloat16)
    exact, _ = expected(sums, None, cache, 4, None)
    x = attended(sums, None, cache, 4, replace(SMALL, warps=2, cluster=4))
    assert relative_error(x, exact) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("broken", ["keys", "values"])
def test_nan_shows(broken: str) -> None:
    """Not-a-number shows in the heads that look at it, and in no other."""
    sums, bias, cache = case(4, 2, 64, 20)
    getattr(cache, broken)[0, 0, 1, 7, 3] = float("nan")
    x = attended(sums, bias, cache, 4, SMALL).view(4, 64)
    assert x[:2].isfinite().all()
    assert x[2:, 3].isnan().all()


def test_large_scores_do_not_overflow() -> None:
    """One slot that outweighs the rest by thousands."""
    sums, bias, cache = case(2, 1, 64, 20)
    cache.keys[0, 0, 0, 5] *= 1000.0
    exact, _ = expected(sums, bias, cache, 2, None)
    assert relative_error(attended(sums, bias, cache, 2, SMALL), exact) < TOLERANCE[torch.float16]


def test_what_does_not_fit_is_refused() -> None:
    """Before anything is compiled."""
    sums, bias, cache = case(4, 2, 64, 3)
    for wrong in ({"warps": 0}, {"cluster": 9}, {"unroll": 3}, {"queries": 0}):
        with pytest.raises(KernelError, match="tile"):
            CUDAAttentionTile(**wrong)
    with pytest.raises(KernelError, match="x_out is"):
        cuda_attention(sums, bias, cache, 0, None, SMALL, x_out=torch.empty(1, 256, device=DEVICE))
    with pytest.raises(KernelError, match="bfloat16 or float16"):
        attended(random(1, 1, 96), None, make_cache(1, 2, 12, 32, 4, torch.float16), 4, SMALL)
    with pytest.raises(KernelError, match="the cache is"):
        cuda_attention(
            sums, bias, make_cache(2, 2, 64, 8, 3, torch.float16), 0, None, SMALL, x_out=sums[0].half()
        )
    with pytest.raises(KernelError, match="does not fit into"):
        attended(*case(4, 1, 256, 3), 4, replace(SMALL, warps=16, queries=4))


def test_where_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision, heads that lanes share evenly; of one row, contexts within reach of one cluster."""
    monkeypatch.setattr(cuda_tiles, "runs_cuda_products", lambda _: True)
    shape, longest = MODEL_SHAPES["llama3.1-8b"], cuda_tiles.LONGEST_CLUSTERED

    def taken(of=shape, dtype=torch.bfloat16, batch=1, capacity=longest) -> bool:
        return cuda_tiles.cuda_attention_tile(of, dtype, DEVICE, batch, capacity) is not None

    assert taken()
    assert not taken(dtype=torch.float32)
    assert not taken(capacity=longest + 1)
    assert taken(batch=2, capacity=longest + 1)
    assert not taken(of=replace(shape, head_dim=96))


def test_tiles_of_several_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contexts of all rows and key-value heads count; where some are chosen, those that are looked at."""
    monkeypatch.setattr(cuda_tiles, "runs_cuda_products", lambda _: True)
    shape, known = MODEL_SHAPES["llama3.1-8b"], cuda_tiles.ATTENTION_BY_CONTEXTS
    tiles = cuda_tiles.chosen(Auto(), shape, torch.bfloat16, DEVICE, 8, 8192)
    assert tiles.attention == known[64]
    assert tiles.selecting.keys() == set(range(1, 8))
    assert (tiles.selecting[4], tiles.selecting[5], tiles.selecting[6]) == (known[32], known[32], known[64])
    assert cuda_tiles.tile_of_contexts(shape, 4) == known[8]
    assert cuda_tiles.tile_of_contexts(shape, 4096) == known[max(known)]
    wide = replace(shape, heads=64, head_dim=256)  # 8 heads of 256 columns leave room for fewer warps
    assert cuda_tiles.tile_of_contexts(wide, 64).fits(8, 256)


@pytest.mark.parametrize("name", MODEL_SHAPES)
@pytest.mark.parametrize(
    ("window", "normed", "chosen"),
    [(None, False, False), (128, False, False), (None, True, False), (None, False, True)],
)
@pytest.mark.parametrize("tile", [cuda_tiles.SHORT_ATTENTION, cuda_tiles.ATTENTION])
def test_compiles_for_the_large_models(
    name: str,
    window: int | None,
    normed: bool,
    chosen: bool,
    tile: CUDAAttentionTile,
    compiled_sizes: list[int],
) -> None:
    """Compute capability 9.0 and the tiles that are used there; no GPU is needed."""
    shape = MODEL_SHAPES[name]
    cache = make_cache(1, shape.kv_heads, shape.head_dim, 205, 128, torch.bfloat16)
    sums = torch.empty(1, 1, shape.attention_width + 2 * shape.kv_width, device=DEVICE)
    scores = torch.empty(1, shape.kv_heads, device=DEVICE)
    selection = Selection(scores, shape.kv_heads // 2) if chosen else None
    attended(sums, None, cache, shape.heads, tile, window, make_norms(cache) if normed else None, selection)
    assert compiled_sizes[0] > 0
