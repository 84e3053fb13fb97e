"""The new token's projections in attention: added up, rounded, normalised in some families, and turned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...errors import KernelError
from ...model.static_cache import StaticCache
from ..compact import rounded
from ..launch import check_tensor


@dataclass(frozen=True)
class HeadNorms:
    """RMSNorm of every head of the queries and of the keys, before they are turned."""

    query: Tensor
    """(head_dim,) gain, in the cache's dtype."""
    key: Tensor
    """(head_dim,) gain, in the cache's dtype."""
    epsilon: float

    def check(self, head_dim: int, dtype: torch.dtype) -> None:
        """Raises KernelError unless the gains fit heads of a cache."""
        check_tensor("the gain of queries", self.query, (head_dim,), dtype)
        check_tensor("the gain of keys", self.key, (head_dim,), dtype)


def gains_of(norms: HeadNorms | None, cache: StaticCache) -> tuple[Tensor | None, Tensor | None, float]:
    """Gains of queries and keys and their epsilon, as kernels take them. Raises KernelError for other heads."""
    if norms is None:
        return None, None, 0.0
    norms.check(cache.keys.shape[-1], cache.keys.dtype)
    return norms.query, norms.key, norms.epsilon


def given(
    sums: Tensor, bias: Tensor | None, norms: HeadNorms | None, cache: StaticCache, block: int
) -> tuple[tuple[Tensor | None, ...], float]:
    """What kernels take first: sums, bias and gains, then the cache of a block; and the norms' epsilon."""
    *gains, epsilon = gains_of(norms, cache)
    cached = cache.keys[block], cache.values[block], cache.cosines, cache.sines, cache.length, cache.first
    return (sums, bias, *gains, *cached), epsilon


def query_heads(sums: Tensor, cache: StaticCache) -> int:
    """Query heads in sums of q, k, v (splits, batch, q + 2·kv). Raises KernelError where the cache differs."""
    _, batch, kv_heads, _, head_dim = cache.keys.shape
    heads = sums.shape[2] // head_dim - 2 * kv_heads
    if sums.shape[1] != batch or heads < kv_heads or heads % kv_heads or sums.shape[2] % head_dim:
        raise KernelError(f"sums of q, k, v are {tuple(sums.shape)}; the cache is {tuple(cache.keys.shape)}")
    return heads


@triton.jit
def projected(sums, bias, like, start, SPLITS: tl.constexpr, STRIDE: tl.constexpr, live):
    """Result of a projection at columns `start`: partial sums (SPLITS, STRIDE apart) and bias, rounded."""
    total = tl.load(sums + start, mask=live, other=0.0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(sums + split * STRIDE + start, mask=live, other=0.0)
    if bias is not None:
        total += tl.load(bias + start, mask=live, other=0.0).to(tl.float32)
    return rounded(total, like)


@triton.jit
def scaled(x, gain, like, d, HEAD: tl.constexpr):
    """Columns d of normalised heads times their gain, rounded where the model rounds."""
    return rounded(rounded(x, like) * tl.load(gain + d, mask=d < HEAD, other=0.0).to(tl.float32), like)


@triton.jit
def rotated(
    sums, bias, gain, like, start, d, cosine, sine, SPLITS: tl.constexpr, STRIDE: tl.constexpr,
    HEAD: tl.constexpr, EPSILON: tl.constexpr, live,
):  # fmt: skip
    """A query or key with its rotary angles applied; `start` is its first column, d (…, head_dim).

    With a gain (head_dim,) it passes through an RMSNorm before, rounded where the model rounds.
    """
    plain = projected(sums, bias, like, start + d, SPLITS, STRIDE, live)
    partner = tl.where(d < HEAD // 2, d + HEAD // 2, d - HEAD // 2)
    other = projected(sums, bias, like, start + partner, SPLITS, STRIDE, live)
    if gain is not None:
        squares = tl.sum(plain * plain, len(plain.shape) - 1, keep_dims=True)
        inverse = 1.0 / tl.sqrt(squares / HEAD + EPSILON)
        plain = scaled(plain * inverse, gain, like, d, HEAD)
        other = scaled(other * inverse, gain, like, partner, HEAD)
    return rounded(plain * cosine + tl.where(d < HEAD // 2, -other, other) * sine, like)


@triton.jit
def new_token(
    own, bias, query_gain, key_gain, like, cosine, sine, head,
    SUM_SPLITS: tl.constexpr, BATCH: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
    QUERIES: tl.constexpr, HEAD: tl.constexpr, PADDED_HEAD: tl.constexpr,
    EPSILON: tl.constexpr,
):  # fmt: skip
    """Queries (QUERIES, PADDED_HEAD), key and value (PADDED_HEAD,) of the new token, in the cache's dtype."""
    STRIDE: tl.constexpr = BATCH * (GROUP + 2) * KV_HEADS * HEAD
    d = tl.arange(0, PADDED_HEAD)
    query = tl.arange(0, QUERIES)
    real = d < HEAD
    q_start = (head * GROUP + query) * HEAD
    q = rotated(own, bias, query_gain, like, q_start[:, None], d[None, :], cosine[None, :], sine[None, :],
                SUM_SPLITS, STRIDE, HEAD, EPSILON, (query[:, None] < GROUP) & real[None, :])  # fmt: skip
    k_start = (KV_HEADS * GROUP + head) * HEAD
    k = rotated(own, bias, key_gain, like, k_start, d, cosine, sine, SUM_SPLITS, STRIDE, HEAD, EPSILON, real)
    v = projected(own, bias, like, k_start + KV_HEADS * HEAD + d, SUM_SPLITS, STRIDE, real)
    return q.to(like.dtype.element_ty), k.to(like.dtype.element_ty), v.to(like.dtype.element_ty)
