"""Attention over chosen key-value groups against float64: Triton, and CUDA C++ on a GPU or emulated."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from wisparse.kernels.cuda.attention import CUDAAttentionTile, cuda_attention
from wisparse.kernels.errors import KernelError
from wisparse.kernels.gpu.step_tiles import StepTiles
from wisparse.kernels.model.static_cache import StaticCache
from wisparse.kernels.triton.attention.general import AttentionTile
from wisparse.kernels.triton.attention.new_token import HeadNorms
from wisparse.kernels.triton.attention.router import group_scores
from wisparse.kernels.triton.attention.selection import Selection
from wisparse.kernels.triton.compact import norm_compact
from wisparse.kernels.triton.gemv_tiles import Tile

from ...triton_cases import DEVICE, TOLERANCE, random, relative_error
from .test_triton_attention import expected, make_cache, make_norms

pytestmark = pytest.mark.usefixtures("cuda_kernels_run")
TRITON = AttentionTile(step=16, splits=2)
CUDA = CUDAAttentionTile(warps=1, cluster=2, unroll=2, queries=2)
SCORES = ((0.5, -1.0, 2.0), (-3.0, -1.0, -1.0))
"""Two rows and three groups; the first of equal ones counts."""
CHOSEN = {1: ((2,), (1,)), 2: ((0, 2), (1, 2)), 3: ((0, 1, 2), (0, 1, 2))}
"""Groups of these rows by how many are kept."""


def attended(
    sums: Tensor, cache: StaticCache, tile: AttentionTile | CUDAAttentionTile, kept: int,
    window: int | None = None, norms: HeadNorms | None = None,
) -> Tensor:  # fmt: skip
    _, batch, kv_heads, _, head_dim = cache.keys.shape
    heads = sums.shape[2] // head_dim - 2 * kv_heads
    x = torch.full((batch, heads * head_dim), 7.0, device=DEVICE, dtype=cache.keys.dtype)
    selection = Selection(torch.tensor(SCORES, device=DEVICE)[:batch].contiguous(), kept)
    if isinstance(tile, CUDAAttentionTile):
        cuda_attention(sums, None, cache, 0, window, tile, norms=norms, selection=selection, x_out=x)
    else:
        attend = StepTiles.uniform(Tile(), attention=tile).selected_attention(cache, heads, kept)
        attend(sums, None, cache, 0, window, norms=norms, selection=selection, x_out=x)
    return x


@pytest.mark.slow
@pytest.mark.parametrize("tile", [TRITON, CUDA, replace(CUDA, warps=2, cluster=1, queries=8)])
@pytest.mark.parametrize(
    ("kept", "length", "window", "first", "normed"),
    [
        (1, 37, None, [0, 3], False),
        (2, 37, 16, [0, 30], True),
        (3, 20, None, [0, 19], False),
        (2, 0, None, [0], False),
    ],
)
def test_against_float64(tile, kept, length, window, first, normed):
    """Rows choose groups of their own; what is not chosen is zero, and its keys and values are appended."""
    heads, kv_heads, head_dim, batch = 12, 3, 32, len(first)
    dtype = torch.float32 if tile is TRITON else torch.float16
    cache = make_cache(batch, kv_heads, head_dim, 48, length, dtype, first=first)
    sums = random(2, batch, (heads + 2 * kv_heads) * head_dim)
    norms = make_norms(cache) if normed else None
    exact, new = expected(sums, None, cache, heads, window, norms)
    x = attended(sums, cache, tile, kept, window, norms).view(batch, kv_heads, -1)
    exact = exact.view(batch, kv_heads, -1)
    for row in range(batch):
        chosen = list(CHOSEN[kept][row])
        others = [group for group in range(kv_heads) if group not in chosen]
        assert relative_error(x[row, chosen], exact[row, chosen]) < TOLERANCE[dtype]
        assert not x[row, others].any()
        for slots, fresh in zip((cache.keys, cache.values), new[row], strict=True):
            assert relative_error(slots[0, row, :, length], fresh) < TOLERANCE[dtype]
    assert torch.equal(x.flatten(1), attended(sums, cache, tile, kept, window, norms))


@pytest.mark.parametrize("tile", [TRITON, CUDA])
def test_keys_and_values_of_other_groups_are_not_read(tile):
    cache = make_cache(1, 3, 32, 24, 20, torch.float16)
    for slots in (cache.keys, cache.values):
        slots[0, 0, :2, :20] = float("nan")
    x = attended(random(1, 1, (6 + 6) * 32), cache, tile, 1)
    assert x.isfinite().all()
    assert x.view(3, -1)[2].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("channels", [48, 50])
def test_scores_are_the_highest_logits_of_a_groups_heads(channels, group, dtype):
    """Beside them, each group leaves a share of the normalised activation, the last a smaller one."""
    residual, gain = random(2, channels), random(channels, seed=1, dtype=dtype).abs() + 0.5
    squares = torch.stack([residual[:, :32].square().sum(1), residual[:, 32:].square().sum(1)], 1)
    weight, bias = random(3 * group, channels, seed=2, dtype=dtype), random(3 * group, seed=3, dtype=dtype)
    scores, x_out = torch.empty(2, 3, device=DEVICE), torch.empty(2, channels, dtype=dtype, device=DEVICE)
    group_scores(residual, squares.contiguous(), gain, 1e-5, weight, bias, scores, x_out)
    x = residual.double() * torch.rsqrt(residual.double().square().mean(1, keepdim=True) + 1e-5) * gain.double()
    exact = (x @ weight.double().T + bias.double()).view(2, 3, group).amax(-1)
    assert relative_error(scores, exact) < TOLERANCE[dtype]
    normed = torch.full_like(x_out, torch.nan)
    norm_compact(residual, squares.contiguous(), gain, 1e-5, None, None, x_out=normed)
    assert torch.equal(x_out, normed)


def test_what_does_not_fit_is_refused():
    cache, sums = make_cache(1, 3, 32, 24, 4, torch.float16), random(1, 1, 12 * 32)
    for kept in (0, 4):
        with pytest.raises(KernelError, match="of 3 key-value groups cannot be looked at"):
            attended(sums, cache, CUDA, kept)
    wrong = Selection(torch.zeros(1, 2, device=DEVICE), 1)
    x = torch.empty(1, 192, device=DEVICE, dtype=torch.float16)
    with pytest.raises(KernelError, match="scores of groups has shape"):
        cuda_attention(sums, None, cache, 0, None, CUDA, selection=wrong, x_out=x)
    many = make_cache(1, 40, 16, 24, 4, torch.float16)
    with pytest.raises(KernelError, match="among 32 key-value heads at most"):
        cuda_attention(
            random(1, 1, 120 * 16), None, many, 0, None, CUDA,
            selection=Selection(torch.zeros(1, 40, device=DEVICE), 1), x_out=x,
        )  # fmt: skip
    with pytest.raises(KernelError, match="equal groups"):
        group_scores(x.float(), x.float(), x[0], 1e-5, x.view(2, 96), x[0], torch.empty(1, 3), x)
