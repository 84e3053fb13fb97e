"""Logits of one token from the residual stream: final norm and lm_head in half precision, one launch.

CUDA C++ for compute capability 9.0 on. Rows of the weight are on their way before the last product has ended.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import KernelError
from ..triton.launch import check_tensor
from .compiled import launch
from .product import Normed, check_source
from .product_tile import LANES
from .stored_weight import VECTOR

WARPS, UNROLL, RESIDENT = 8, 4, 2
"""Warps of a thread block, vectors of a row on their way, thread blocks of a multiprocessor."""
MOST_CHANNELS = 16384
"""A thread block has shared memory for so many."""


def suits_cuda_head(dtype: torch.dtype, channels: int) -> bool:
    """Whether the weight is in half precision and its rows are whole vectors of 16 bytes."""
    return dtype in (torch.bfloat16, torch.float16) and channels % VECTOR == 0 and channels <= MOST_CHANNELS


def cuda_head(
    source: Normed, weight: Tensor, length: Tensor, logits: Tensor, blocks: int, pdl: bool = False
) -> None:
    """Logits (1, vocabulary) float32 = x · weightᵀ, rounded where the model rounds.

    weight: (vocabulary, channels). length (1,) int32 is increased by 1; blocks: thread blocks that share the
    rows. Raises KernelError for tensors that do not fit.
    """
    rows, channels = weight.shape
    if not suits_cuda_head(weight.dtype, channels) or not weight.is_contiguous() or weight.data_ptr() % 16:
        raise KernelError(
            f"lm_head must be contiguous and aligned, in bfloat16 or float16, of multiples of {VECTOR} and at "
            f"most {MOST_CHANNELS} channels, not {weight.dtype} {tuple(weight.shape)}"
        )
    check_source(source, channels, weight.dtype)
    check_tensor("length", length, (1,), torch.int32)
    check_tensor("logits", logits, (1, rows), torch.float32)
    constants = {
        **source.constants,
        "IN": channels,
        "ROWS": rows,
        "BLOCKS": blocks,
        "WARPS": WARPS,
        "UNROLL": UNROLL,
        "CLUSTER": 1,
        "RESIDENT": RESIDENT,
        "FLOAT16": int(weight.dtype is torch.float16),
    }
    launch("head", constants, blocks, WARPS * LANES, (weight, *source.tensors, length, logits), pdl)
