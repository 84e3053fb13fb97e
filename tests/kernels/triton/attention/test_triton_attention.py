"""Attention of one token over a static cache against float64."""

from dataclasses import replace

import pytest
import torch
from wisparse.kernels.errors import KernelError
from wisparse.kernels.gpu.step_tiles import StepTiles
from wisparse.kernels.model.static_cache import StaticCache
from wisparse.kernels.triton.attention.general import AttentionTile, attention, scratch_of
from wisparse.kernels.triton.attention.new_token import HeadNorms
from wisparse.kernels.triton.attention.short import ShortAttentionTile, short_attention
from wisparse.kernels.triton.channel_lists import ChannelLists
from wisparse.kernels.triton.gemv_tiles import Tile

from ...triton_cases import DEVICE, TOLERANCE, random, relative_error


def make_cache(batch, kv_heads, head_dim, capacity, length, dtype=torch.float32, first=None):
    angles = torch.arange(capacity)[:, None] / 10.0 ** (torch.arange(head_dim // 2) / head_dim)
    angles = torch.cat([angles, angles], 1).to(DEVICE)
    return StaticCache(
        keys=random(1, batch, kv_heads, capacity, head_dim, seed=5, dtype=dtype),
        values=random(1, batch, kv_heads, capacity, head_dim, seed=6, dtype=dtype),
        length=torch.tensor([length], dtype=torch.int32, device=DEVICE),
        first=torch.tensor(first or [0] * batch, dtype=torch.int32, device=DEVICE),
        cosines=angles.cos(),
        sines=angles.sin(),
    )


def rotate(x, cache, position):
    """x (heads, head_dim) float64 with the angles of one position."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[:, half:], x[:, :half]], -1)
    return x * cache.cosines[position].double() + turned * cache.sines[position].double()


def make_norms(cache, epsilon=1e-3):
    """Gains of heads that differ from 1, and an epsilon that shows."""
    head_dim, dtype = cache.keys.shape[-1], cache.keys.dtype
    query, key = (random(head_dim, seed=seed).abs() + 0.5 for seed in (8, 9))
    return HeadNorms(query.to(dtype), key.to(dtype), epsilon)


def normalised(x, gain, epsilon):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * gain.double()


def expected(sums, bias, cache, heads, window, norms=None):
    """(batch, channels) float64, and what the cache must hold at the new slot."""
    _, batch, kv_heads, _, head_dim = cache.keys.shape
    length, outputs, new = int(cache.length), [], []
    total = sums.double().sum(0) + (0 if bias is None else bias.double())
    for row in range(batch):
        first = int(cache.first[row])
        q, k, v = total[row].split([heads * head_dim, kv_heads * head_dim, kv_heads * head_dim])
        q, k, v = (part.view(-1, head_dim) for part in (q, k, v))
        if norms is not None:
            q, k = normalised(q, norms.query, norms.epsilon), normalised(k, norms.key, norms.epsilon)
        q, k = (rotate(part, cache, length - first) for part in (q, k))
        begin = first if window is None else max(first, length + 1 - window)
        keys = torch.cat([cache.keys[0, row, :, begin:length].double(), k[:, None]], 1)
        values = torch.cat([cache.values[0, row, :, begin:length].double(), v[:, None]], 1)
        keys, values = (t.repeat_interleave(heads // kv_heads, 0) for t in (keys, values))
        weights = torch.softmax((keys * q[:, None]).sum(-1) * head_dim**-0.5, -1)
        outputs.append((weights[..., None] * values).sum(1).flatten())
        new.append((k, v))
    return torch.stack(outputs), new


CASES = [
    # heads, kv_heads, head_dim, length, window, first of each row
    (4, 2, 12, 37, None, [0]),
    (6, 2, 32, 20, 16, [0, 3, 18]),
    (4, 4, 64, 0, None, [0]),
    (7, 1, 16, 50, None, [0, 49]),
    (6, 3, 16, 33, None, [2]),
]
TILES = [AttentionTile(step=16, splits=2), ShortAttentionTile(step=16)]
ONE_ROW = [(tile, *case) for tile in TILES for case in CASES if len(case[-1]) == 1]
ROWS = [(TILES[0], *case) for case in CASES if len(case[-1]) > 1]


@pytest.mark.slow
@pytest.mark.parametrize(("tile", "heads", "kv_heads", "head_dim", "length", "window", "first"), ONE_ROW + ROWS)
@pytest.mark.parametrize(("splits", "normed"), [(1, False), (2, False), (2, True)])
def test_attention(tile, heads, kv_heads, head_dim, length, window, first, splits, normed):
    batch = len(first)
    cache = make_cache(batch, kv_heads, head_dim, 64, length, first=first)
    width = (heads + 2 * kv_heads) * head_dim
    sums, bias = random(splits, batch, width), random(width, seed=1)
    norms = make_norms(cache) if normed else None
    exact, new = expected(sums, bias, cache, heads, window, norms)
    x = torch.empty(batch, heads * head_dim, device=DEVICE)
    attend = StepTiles.uniform(Tile(), attention=tile).attention_over(cache, heads)
    attend(sums, bias, cache, 0, window, norms=norms, x_out=x)
    assert relative_error(x, exact) < 1e-5
    for row, (key, value) in enumerate(new):
        assert relative_error(cache.keys[0, row, :, length], key) < 1e-5
        assert relative_error(cache.values[0, row, :, length], value) < 1e-5
    again = torch.empty_like(x)
    attend(sums, bias, cache, 0, window, norms=norms, x_out=again)  # with the counters that the first call left
    assert torch.equal(x, again)


@pytest.mark.parametrize("tile", TILES)
def test_norms_of_heads_are_rounded_where_the_model_rounds(tile):
    """Equal to the bit with what transformers does in float16 where it puts a key into the cache."""
    cache = make_cache(1, 1, 64, 24, 5, torch.float16)
    cache.cosines.fill_(1.0)
    cache.sines.zero_()
    sums, norms = random(1, 1, 3 * 64, scale=40.0), make_norms(cache)
    attend = StepTiles.uniform(Tile(), attention=tile).attention_over(cache, 1)
    attend(
        sums, None, cache, 0, None, norms=norms, x_out=torch.empty(1, 64, dtype=torch.float16, device=DEVICE)
    )
    key = sums[0, 0, 64:128].half().float()
    plain = (key * torch.rsqrt(key.square().mean() + norms.epsilon)).half() * norms.key
    steps = (cache.keys[0, 0, 0, 5].view(torch.int16) - plain.view(torch.int16)).abs()
    assert steps.max() <= 2  # 1/√ differs by an ulp between machines: a flip before the gain
    assert (steps == 0).float().mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_output_is_listed_by_groups_of_heads(dtype):
    heads, kv_heads, head_dim, tile = 6, 2, 16, AttentionTile(step=16, splits=2)
    cache = make_cache(1, kv_heads, head_dim, 48, 20, dtype, first=[2])
    sums, channels = random(1, 1, (heads + 2 * kv_heads) * head_dim), heads * head_dim
    exact, _ = expected(sums, None, cache, heads, None)
    scratch = scratch_of(cache, heads, tile)
    x = torch.empty(1, channels, dtype=dtype, device=DEVICE)
    attention(sums, None, cache, 0, None, **scratch, tile=tile, x_out=x)
    assert relative_error(x, exact) < TOLERANCE[dtype]
    lists = ChannelLists.empty(1, 1, channels, channels // kv_heads, DEVICE)
    bounds = random(channels, seed=2).abs() * 0.3
    attention(sums, None, cache, 0, None, **scratch, tile=tile, bounds=bounds, lists=lists)
    assert torch.equal(lists.dense()[0], x.float() * (x.float().abs() >= bounds))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_output_is_listed_by_query_heads(dtype):
    heads, kv_heads, head_dim, tile = 6, 2, 12, ShortAttentionTile(step=16)
    cache = make_cache(1, kv_heads, head_dim, 48, 20, dtype, first=[2])
    sums, channels = random(1, 1, (heads + 2 * kv_heads) * head_dim), heads * head_dim
    exact, _ = expected(sums, None, cache, heads, None)
    x = torch.empty(1, channels, dtype=dtype, device=DEVICE)
    short_attention(sums, None, cache, 0, None, tile, x_out=x)
    assert relative_error(x, exact) < TOLERANCE[dtype]
    lists = ChannelLists.empty(1, 1, channels, head_dim, DEVICE)
    bounds = random(channels, seed=2).abs() * 0.3
    short_attention(sums, None, cache, 0, None, tile, bounds=bounds, lists=lists)
    assert torch.equal(lists.dense()[0], x.float() * (x.float().abs() >= bounds))


def test_bad_input_ends_in_one_line():
    cache, tile = make_cache(1, 2, 16, 32, 4), AttentionTile(16, 2)
    parts, counters = torch.empty(1000, device=DEVICE), torch.zeros(2, dtype=torch.int32, device=DEVICE)
    x = torch.empty(1, 64, device=DEVICE)
    with pytest.raises(KernelError, match="the cache is"):
        attention(random(1, 2, 128), None, cache, 0, None, parts, counters, tile, x_out=x)
    with pytest.raises(KernelError, match="scratch_of"):
        attention(random(1, 1, 128), None, cache, 0, None, parts[:10], counters, tile, x_out=x)
    norms = replace(make_norms(cache), key=torch.ones(8, device=DEVICE))
    with pytest.raises(KernelError, match="the gain of keys has shape"):
        attention(random(1, 1, 128), None, cache, 0, None, parts, counters, tile, norms=norms, x_out=x)
    lists = ChannelLists.empty(1, 1, 64, 16, DEVICE)
    with pytest.raises(KernelError, match="2 blocks of 32"):
        attention(random(1, 1, 128), None, cache, 0, None, parts, counters, tile, bounds=x[0], lists=lists)
    with pytest.raises(KernelError, match="takes one row"):
        short_attention(
            random(1, 2, 128), None, make_cache(2, 2, 16, 32, 4), 0, None, ShortAttentionTile(), x_out=x
        )
    lists = ChannelLists.empty(1, 1, 64, 32, DEVICE)
    with pytest.raises(KernelError, match="4 blocks of 16"):
        short_attention(random(1, 1, 128), None, cache, 0, None, ShortAttentionTile(), bounds=x[0], lists=lists)
