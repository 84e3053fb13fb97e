"""Keys and values of a decode in tensors of fixed size, and the rotary angles of every position."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import KernelError
from .decoder import Decoder, DecoderShape


@dataclass(frozen=True)
class StaticCache:
    """Slots for `capacity` tokens a row; rows are padded on the left, so that all grow at the same slot."""

    keys: Tensor
    """(blocks, batch, kv_heads, capacity, head_dim), rotated."""
    values: Tensor
    """(blocks, batch, kv_heads, capacity, head_dim); not rotated."""
    length: Tensor
    """(1,) int32: slots filled, and the slot that the next token takes."""
    first: Tensor
    """(batch,) int32: first slot of each row that is no padding."""
    cosines: Tensor
    """(capacity, head_dim) float32."""
    sines: Tensor
    """(capacity, head_dim) float32."""

    @classmethod
    def for_model(cls, model: nn.Module, shape: DecoderShape, batch: int, capacity: int) -> StaticCache:
        """An empty cache in the dtype of the model, on its device.

        Raises KernelError beyond the model's positions, and where a GPU has too little memory left for it.
        """
        check_positions(model, capacity)
        decoder = Decoder.of(model)
        weight = decoder.lm_head.weight
        size = (shape.blocks, batch, shape.kv_heads, capacity, shape.head_dim)
        _check_room(2 * math.prod(size) * weight.element_size(), batch, capacity, weight.device)
        positions = torch.arange(capacity, device=weight.device)[None]
        angles = torch.empty(0, dtype=torch.float32, device=weight.device)  # only its dtype and device count
        cosines, sines = decoder.rotary(angles, positions)
        return cls(
            keys=torch.zeros(size, dtype=weight.dtype, device=weight.device),
            values=torch.zeros(size, dtype=weight.dtype, device=weight.device),
            length=torch.zeros(1, dtype=torch.int32, device=weight.device),
            first=torch.zeros(batch, dtype=torch.int32, device=weight.device),
            cosines=cosines[0].contiguous(),
            sines=sines[0].contiguous(),
        )

    @property
    def batch(self) -> int:
        """Rows."""
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        """Slots a row."""
        return self.keys.shape[3]

    def fill(self, prompt: Any, first: Tensor) -> None:
        """Take over the keys and values of a prompt from a transformers cache that holds all of its tokens.

        first: (batch,) first slot of each row that is no padding.
        """
        length = prompt.get_seq_length()
        for block, layer in enumerate(prompt.layers):
            self.keys[block, :, :, :length] = layer.keys
            self.values[block, :, :, :length] = layer.values
        self.length.fill_(length)
        self.first.copy_(first)


def check_positions(model: nn.Module, capacity: int) -> None:
    """Raise KernelError where a model has no positions for so many tokens."""
    longest = model.config.max_position_embeddings
    if not 0 < capacity <= longest:
        raise KernelError(f"the model has positions for {longest} tokens, not for {capacity}")


def _check_room(wanted: int, batch: int, capacity: int, device: torch.device) -> None:
    """Raise KernelError where so many bytes are not free on a GPU, before any of them is taken."""
    if device.type != "cuda":
        return
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if wanted > free:
        raise KernelError(
            f"a cache of {capacity} tokens for {batch} rows takes {wanted / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free; give fewer rows or a smaller capacity"
        )
