"""Attention of one token as it runs in a decode step, on random keys and values that L2 does not hold."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..gpu.tuning.timing import cold_copies
from ..model.decoder import DecoderShape
from ..model.static_cache import StaticCache


class AttentionWorkload:
    """A full cache of `context` slots, the last of which is the new token's; copies stand for other blocks."""

    def __init__(
        self, shape: DecoderShape, dtype: torch.dtype, device: torch.device, batch: int, context: int
    ) -> None:
        self.shape = shape
        self.bytes_read = 2 * batch * shape.kv_width * context * dtype.itemsize
        self.copies = min(64, cold_copies(self.bytes_read, device))
        size = (self.copies, batch, shape.kv_heads, context, shape.head_dim)
        self.cache = StaticCache(
            keys=torch.randn(size, device=device).to(dtype),
            values=torch.randn(size, device=device).to(dtype),
            length=torch.full((1,), context - 1, dtype=torch.int32, device=device),
            first=torch.zeros(batch, dtype=torch.int32, device=device),
            cosines=torch.ones(context, shape.head_dim, device=device),
            sines=torch.zeros(context, shape.head_dim, device=device),
        )
        self.sums = torch.randn(1, batch, shape.attention_width + 2 * shape.kv_width, device=device)
        self._x = torch.zeros(batch, shape.attention_width, dtype=dtype, device=device)

    def start(self, attend: Callable[..., None], copy: int = 0, pdl: bool = False) -> None:
        """Launch it for the whole activation: turn q and k, append k and v, attend."""
        attend(self.sums, None, self.cache, copy, None, x_out=self._x, pdl=pdl)

    def plain(self, copy: int = 0) -> Tensor:
        """Torch's own attention with the new token's key and value in the cache already: nothing is turned."""
        shape = self.shape
        q = self.sums[0, :, : shape.attention_width].view(-1, shape.heads, 1, shape.head_dim)
        keys, values = self.cache.keys[copy], self.cache.values[copy]
        return F.scaled_dot_product_attention(q.to(keys.dtype), keys, values, enable_gqa=True)

    def error(self, attend: Callable[..., None]) -> float:
        """Highest error relative to the highest exact value, against float64."""
        self.start(attend)
        shape, group = self.shape, self.shape.heads // self.shape.kv_heads
        q = self.sums[0, :, : shape.attention_width].view(-1, shape.heads, 1, shape.head_dim).double()
        keys, values = (
            slots[0].double().repeat_interleave(group, 1) for slots in (self.cache.keys, self.cache.values)
        )
        exact = (torch.softmax((q * keys).sum(-1) * shape.head_dim**-0.5, -1)[..., None] * values).sum(2)
        return ((self._x - exact.flatten(1)).abs().max() / exact.abs().max()).item()
