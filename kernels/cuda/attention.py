"""Attention of one new token, one launch in which a cluster of thread blocks shares a key-value head.

CUDA C++ for compute capability 9.0 on. Keys and values of earlier tokens are on their way before the
product of q, k and v has ended; thread blocks combine through each other's shared memory. It writes the whole
activation; where channels have to be listed behind it, the Triton kernels do both in one launch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import KernelError
from ..model.static_cache import StaticCache
from ..stored_tile import StoredTile
from ..triton.attention.new_token import HeadNorms, gains_of, query_heads
from ..triton.attention.selection import Selection, kept_groups
from ..triton.launch import blocks_of, check_tensor, power_of_two
from .compiled import launch
from .product_tile import LANES, LARGEST_CLUSTER, SHARED_BYTES
from .stored_weight import VECTOR

HEADS_OF = (16, 32, 64, 128, 256)
"""Columns of a head that whole lanes of a warp share."""


@dataclass(frozen=True)
class CUDAAttentionTile(StoredTile):
    """The share of one thread block."""

    warps: int = 4
    cluster: int = 8
    """Thread blocks that share the context."""
    unroll: int = 4
    """Slots that one lane has on their way; a power of two, at most an eighth of a head's columns is used."""
    queries: int = 8
    """Most query heads that share the keys and values a thread block has read."""

    def __post_init__(self) -> None:
        if not 1 <= self.warps <= LANES:
            raise KernelError(f"tile: a thread block has 1 to {LANES} warps, not {self.warps}")
        if not 1 <= self.cluster <= LARGEST_CLUSTER:
            raise KernelError(f"tile: a cluster has 1 to {LARGEST_CLUSTER} thread blocks, not {self.cluster}")
        if self.unroll < 1 or self.unroll != power_of_two(self.unroll):
            raise KernelError(f"tile: {self.unroll} slots are no power of two")
        if self.queries < 1:
            raise KernelError(f"tile: {self.queries} query heads are not at least 1")

    def queries_of(self, group: int) -> int:
        """Query heads of a thread block where `group` share a key-value head."""
        return blocks_of(group, blocks_of(group, self.queries))

    def shared_bytes(self, group: int, head_dim: int) -> int:
        """Most shared memory of one thread block."""
        queries, lanes = self.queries_of(group), head_dim // VECTOR
        slots = self._unroll(head_dim) * LANES // lanes + 1
        share = blocks_of(queries * head_dim // 4, self.cluster) * 4
        words = (queries + 2) * head_dim + self.warps * slots * power_of_two(queries)
        words += self.warps * queries * (head_dim + 2) + self.cluster * (share + 2 * queries)
        return 4 * words + 80  # of alignment, and of what counts arrivals

    def fits(self, group: int, head_dim: int) -> bool:
        """Whether a thread block has shared memory for it."""
        return self.shared_bytes(group, head_dim) <= SHARED_BYTES

    def _unroll(self, head_dim: int) -> int:
        return min(self.unroll, head_dim // VECTOR)

    def constants(self, group: int, head_dim: int) -> dict[str, object]:
        """Constants of the tile that the kernel is compiled for."""
        queries = self.queries_of(group)
        return {
            "WARPS": self.warps,
            "CLUSTER": self.cluster,
            "UNROLL": self._unroll(head_dim),
            "QUERIES": queries,
            "PADDED": power_of_two(queries),
        }


@dataclass(frozen=True)
class _Sizes:
    """What a launch is compiled for beside its tile."""

    batch: int
    heads: int
    kv_heads: int
    capacity: int
    head_dim: int

    @classmethod
    def of(cls, sums: Tensor, cache: StaticCache) -> _Sizes:
        """Sizes of a cache and of the query heads whose sums are given."""
        _, batch, kv_heads, capacity, head_dim = cache.keys.shape
        return cls(batch, query_heads(sums, cache), kv_heads, capacity, head_dim)

    @property
    def group(self) -> int:
        """Query heads that share a key-value head."""
        return self.heads // self.kv_heads

    def constants(self) -> dict[str, object]:
        """Constants that the kernel is compiled for."""
        return {
            "HEAD": self.head_dim,
            "HEADS": self.heads,
            "KV_HEADS": self.kv_heads,
            "BATCH": self.batch,
            "CAPACITY": self.capacity,
            "SCALE": f"{self.head_dim**-0.5 * math.log2(math.e):.9e}f",
        }


def suits_cuda_attention(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the cache is in half precision, and lanes of a warp share a head evenly."""
    return dtype in (torch.bfloat16, torch.float16) and head_dim in HEADS_OF


def cuda_attention(
    sums: Tensor,
    bias: Tensor | None,
    cache: StaticCache,
    block: int,
    window: int | None,
    tile: CUDAAttentionTile,
    *,
    norms: HeadNorms | None = None,
    selection: Selection | None = None,
    x_out: Tensor,
    pdl: bool = False,
) -> None:
    """`triton.attention.general.attention` for the whole activation x_out (batch, channels).

    selection: the key-value groups that a row looks at; x_out is zero at the heads of the others, whose new
    keys and values are appended all the same. Raises KernelError for what does not fit.
    """
    scores, kept = kept_groups(selection, cache)
    sizes = _Sizes.of(sums, cache)
    _check_sizes(sizes, cache.keys.dtype, tile, selecting=selection is not None)
    check_tensor("sums", sums, tuple(sums.shape), torch.float32)
    check_tensor("x_out", x_out, (sizes.batch, sizes.heads * sizes.head_dim), cache.keys.dtype)
    if bias is not None:
        check_tensor("bias", bias, (sums.shape[2],), cache.keys.dtype)
    *gains, epsilon = gains_of(norms, cache)
    constants = {
        **tile.constants(sizes.group, sizes.head_dim),
        **sizes.constants(),
        "CHOSEN": kept,
        "WINDOW": window if window and window < sizes.capacity else 0,
        "SPLITS": sums.shape[0],
        "FLOAT16": int(cache.keys.dtype is torch.float16),
        "HEAD_NORM": int(norms is not None),
        "EPSILON": f"{epsilon:.9e}f",
    }
    clusters = sizes.batch * kept * blocks_of(sizes.group, tile.queries_of(sizes.group))
    keys, values = cache.keys[block], cache.values[block]
    angles = cache.cosines, cache.sines
    arguments = (sums, bias, keys, values, *angles, cache.length, cache.first, x_out, *gains, scores)
    launch("attention", constants, clusters * tile.cluster, tile.warps * LANES, arguments, pdl)


def _check_sizes(sizes: _Sizes, dtype: torch.dtype, tile: CUDAAttentionTile, selecting: bool) -> None:
    """Raise KernelError for what the kernel or its tile does not take."""
    if selecting and sizes.kv_heads > LANES:
        raise KernelError(f"CUDA attention chooses among {LANES} key-value heads at most, not {sizes.kv_heads}")
    if not suits_cuda_attention(dtype, sizes.head_dim):
        raise KernelError(
            f"CUDA attention takes bfloat16 or float16 and heads of {', '.join(map(str, HEADS_OF))} columns, "
            f"not {dtype} and {sizes.head_dim}"
        )
    if not tile.fits(sizes.group, sizes.head_dim):
        raise KernelError(
            f"tile: what {tile.warps} warps find does not fit into {SHARED_BYTES} bytes; take fewer"
        )
