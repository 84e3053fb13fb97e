"""The smallest score that per-token top-k keeps (WINA, arXiv 2505.19427): CUDA C++.

For compute capability 9.0 on: of one token, before a product that lists its channels itself, and of the |x|
that several rows have together; `triton.select` does it everywhere, and for rows with a top-k each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import KernelError
from ..triton.launch import blocks_of, check_tensor
from .compiled import launch
from .product import LANES, MOST_CHANNELS, Given, Source, check_source

MOST_WARPS = 32
CHANNELS_OF_WARP = 64
"""Fewer warps for fewer channels."""


def cuda_select(
    source: Source,
    score_weights: Tensor,
    kept: Tensor,
    smallest: Tensor,
    x_out: Tensor | None = None,
    fewest: Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Smallest (lists, 1) float32: the k-th highest |x|·w, but no zero; ∞ where k is 0.

    score_weights (lists, channels) float32, not negative; kept (lists,) int32 numbers k; x_out (1, channels),
    where given, receives x in half precision. fewest (lists,) int32: k is how many scores reach 1, from
    `fewest` to `kept`. NaN counts as the highest. Raises KernelError for tensors that do not fit.
    """
    lists, channels = score_weights.shape
    x, squares, gain = source.tensors
    dtype = x.dtype if gain is None else gain.dtype
    if dtype not in (torch.bfloat16, torch.float16) or channels > MOST_CHANNELS:
        raise KernelError(
            f"selection takes bfloat16 or float16 and at most {MOST_CHANNELS} channels, not {dtype} {channels}"
        )
    check_source(source, channels, dtype)
    check_tensor("score weights", score_weights, (lists, channels), torch.float32)
    check_tensor("kept", kept, (lists,), torch.int32)
    check_tensor("smallest", smallest, (lists, 1), torch.float32)
    if fewest is not None:
        check_tensor("fewest", fewest, (lists,), torch.int32)
    if x_out is not None:
        check_tensor("x_out", x_out, (1, channels), dtype)
    constants = {
        **source.constants,
        "WRITE_X": int(x_out is not None),
        "BOUNDED": int(fewest is not None),
        "FLOAT16": int(dtype is torch.float16),
        "TOGETHER": 0,
    }
    _start(constants, (x, squares, gain, score_weights, kept, fewest, smallest, x_out), lists, channels, pdl)


def cuda_select_together(
    magnitudes: Tensor, score_weights: Tensor, kept: Tensor, smallest: Tensor, pdl: bool = False
) -> None:
    """The same of |x| that several rows have together, magnitudes (channels,) float32, not negative.

    Raises KernelError for what does not fit.
    """
    lists, channels = score_weights.shape
    if channels > MOST_CHANNELS:
        raise KernelError(f"selection takes at most {MOST_CHANNELS} channels, not {channels}")
    check_tensor("magnitudes", magnitudes, (channels,), torch.float32)
    check_tensor("score weights", score_weights, (lists, channels), torch.float32)
    check_tensor("kept", kept, (lists,), torch.int32)
    check_tensor("smallest", smallest, (lists, 1), torch.float32)
    constants = {**Given(magnitudes).constants, "WRITE_X": 0, "BOUNDED": 0, "FLOAT16": 0, "TOGETHER": 1}
    arguments = (magnitudes, None, None, score_weights, kept, None, smallest, None)
    _start(constants, arguments, lists, channels, pdl)


def _start(
    constants: dict[str, object], arguments: tuple[Tensor | None, ...], lists: int, channels: int, pdl: bool
) -> None:
    warps = min(MOST_WARPS, blocks_of(channels, CHANNELS_OF_WARP))
    sizes = {"IN": channels, "WARPS": warps, "CLUSTER": 1}
    launch("select", {**constants, **sizes}, lists, warps * LANES, arguments, pdl)
