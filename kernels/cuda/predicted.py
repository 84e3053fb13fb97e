"""Neurons of one token that signs predict to be above zero (SparseInfer, arXiv 2411.12692): CUDA C++.

For compute capability 9.0 on. One launch counts signs, reads rows of gate of the neurons that are left, and
rows of up of those whose gate is not zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import KernelError
from ..plan.signs import SignRule
from ..triton.launch import blocks_of, check_tensor
from .compiled import launch
from .product import HIDDEN_BY, Source, check_source
from .product_tile import LANES

MOST_NEURONS = 32
"""A thread block's, of which one word says which are computed."""
MOST_CHANNELS = 16384
"""Channels whose activation fits into a thread block's shared memory."""
WORD = 32
"""Signs of a word."""


@dataclass(frozen=True)
class PredictedTile:
    """Sizes of a launch."""

    neurons: int = 16
    """Neurons of a thread block."""
    warps: int = 4
    unroll: int = 8
    """Vectors of 16 bytes of a row that a lane has on their way."""


@dataclass(frozen=True)
class SignWords:
    """A rule's packed signs as the kernel reads them."""

    words: Tensor
    """(neurons, words) int32, 32 signs in a word, whole vectors of four; padded with 0."""
    limit: Tensor
    """(1,) int32 most unlike signs of a neuron that is computed."""

    @classmethod
    def of(cls, rule: SignRule) -> SignWords:
        """The words of a rule, on its device."""
        missing = -rule.signs.shape[1] % 16
        words = F.pad(rule.signs, (0, missing)).contiguous().view(torch.int32)
        return cls(words, torch.tensor([rule.limit], dtype=torch.int32, device=words.device))


def cuda_predicted(
    source: Source,
    signs: SignWords,
    gate_rows: Tensor,
    up_rows: Tensor,
    hidden: Tensor,
    tile: PredictedTile,
    nonlinearity: str = "relu",
    pdl: bool = False,
) -> None:
    """Hidden (1, ffn) = activated (x · gate) · (x · up) of the neurons with few unlike signs, 0 for the others.

    gate_rows, up_rows (ffn, channels), a row for each neuron, in half precision, to which everything is rounded
    where the model rounds. Raises KernelError for tensors that do not fit.
    """
    check_neurons(source, gate_rows, up_rows, hidden, tile)
    neurons, channels = gate_rows.shape
    words = blocks_of(channels, 4 * WORD) * 4
    check_tensor("signs", signs.words, (neurons, words), torch.int32)
    check_tensor("limit", signs.limit, (1,), torch.int32)
    constants = {**source.constants, **constants_of(gate_rows, tile, nonlinearity), "SIGN_WORDS": words}
    arguments = (*source.tensors, signs.words, signs.limit, gate_rows, up_rows, hidden)
    launch("predicted", constants, blocks_of(neurons, tile.neurons), tile.warps * LANES, arguments, pdl)


def check_neurons(
    source: Source, gate_rows: Tensor, up_rows: Tensor, hidden: Tensor, tile: PredictedTile
) -> None:
    """Raises KernelError for an activation, rows (ffn, channels) or a target (1, ffn) that do not fit."""
    neurons, channels = gate_rows.shape
    dtype = gate_rows.dtype
    if dtype not in (torch.bfloat16, torch.float16) or channels % 8 or channels > MOST_CHANNELS:
        raise KernelError(
            f"rows of neurons are read in bfloat16 or float16, of multiples of 8 and at most {MOST_CHANNELS} "
            f"channels, not in {dtype} of {channels}; evaluate the plan without the engine (latency=none)"
        )
    check_source(source, channels, dtype)
    check_tensor("gate's rows", gate_rows, (neurons, channels), dtype)
    check_tensor("up's rows", up_rows, (neurons, channels), dtype)
    check_tensor("hidden", hidden, (1, neurons), dtype)
    if not 1 <= tile.neurons <= min(MOST_NEURONS, tile.warps * LANES):
        raise KernelError(f"a thread block takes 1 to {MOST_NEURONS} neurons, not {tile.neurons}")


def constants_of(gate_rows: Tensor, tile: PredictedTile, nonlinearity: str) -> dict[str, object]:
    """Constants that kernels of neurons' rows are compiled for."""
    neurons, channels = gate_rows.shape
    return {
        "IN": channels,
        "WIDTH": neurons,
        "NEURONS": tile.neurons,
        "WARPS": tile.warps,
        "UNROLL": tile.unroll,
        "CLUSTER": 1,
        "HIDDEN": HIDDEN_BY[nonlinearity],
        "FLOAT16": int(gate_rows.dtype is torch.float16),
    }
