"""Neurons of one token that scores choose: CUDA C++.

For compute capability 9.0 on, behind the product with proxies and the selection of the highest scores (Prox,
arXiv 2607.27591), or behind a router and its choice of groups (LTE, arXiv 2402.06126).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import KernelError
from ..triton.launch import blocks_of, check_tensor
from .compiled import launch
from .predicted import PredictedTile, check_neurons, constants_of
from .product import Given
from .product_tile import LANES


def cuda_ranked(
    x: Tensor,
    scores: Tensor,
    smallest: Tensor,
    gate_rows: Tensor,
    up_rows: Tensor,
    hidden: Tensor,
    tile: PredictedTile,
    nonlinearity: str = "silu",
    pdl: bool = False,
) -> None:
    """Hidden (1, ffn) = activated (x · gate) · (x · up) of neurons with |score| ≥ smallest, 0 for the others.

    x (1, channels), scores (1, ffn or more), gate_rows and up_rows (ffn, channels), a row for each neuron, are
    in half precision, to which everything is rounded where the model rounds; smallest (1, 1) float32. Raises
    KernelError for tensors that do not fit.
    """
    check_neurons(Given(x), gate_rows, up_rows, hidden, tile)
    neurons, dtype = len(gate_rows), gate_rows.dtype
    check_tensor("smallest", smallest, (1, 1), torch.float32)
    check_tensor("scores", scores, (1, scores.shape[-1]), dtype)
    if scores.shape[-1] < neurons:
        raise KernelError(f"there are {scores.shape[-1]} scores of {neurons} neurons")
    arguments = (x, scores, smallest, gate_rows, up_rows, hidden)
    constants = constants_of(gate_rows, tile, nonlinearity)
    launch("ranked", constants, blocks_of(neurons, tile.neurons), tile.warps * LANES, arguments, pdl)
