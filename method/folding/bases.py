"""Bases in which a decoder's activations gather in few channels, measured on the calibration text.

The residual stream has one basis for all blocks: the principal axes of what its norms make of it, all tokens
and all sites weighted alike. A head's values have one in each block: the principal axes of what o reads of it,
over all heads of q that share it. Both cost nothing a token (`kernels.folding`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from ...kernels.plan_data import FoldedBases
from ..calibration import Calibration
from ..errors import UserError
from ..hooks import hooked
from ..projections import NORM_PATHS, PROJECTION_PATHS, decoder_of


class SecondMoments:
    """Sums of x xᵀ over the tokens that are sparse while a method searches."""

    def __init__(self, positions: Tensor | None) -> None:
        self.positions = positions
        self.sum: Tensor | float = 0.0
        """(..., channels, channels) float64."""

    def add(self, x: Tensor) -> None:
        """Add activations (rows, length, ..., channels)."""
        if self.positions is not None:
            x = x[:, self.positions[0]]
        x = x.flatten(0, 1).double()
        self.sum = self.sum + torch.einsum("n...i,n...j->...ij", x, x)


@torch.inference_mode()
def shared_bases(calibration: Calibration, sequences: int) -> FoldedBases:
    """Principal axes of the residual stream and of each block's values, on so many sequences; computed once.

    Raises UserError where activations are not finite.
    """
    return calibration.remembered(("shared bases", sequences), lambda: _measured(calibration, sequences))


def _measured(calibration: Calibration, sequences: int) -> FoldedBases:
    input_ids = calibration.input_ids[calibration.spread(sequences)].to(calibration.device)
    positions = calibration.search_positions(input_ids)
    decoder = decoder_of(calibration.model)
    stream = SecondMoments(positions)
    values = [SecondMoments(positions) for _ in decoder.blocks]
    with hooked(_recorders(calibration, stream, values)):
        for batch in tqdm(input_ids.split(calibration.batch_size), desc="bases", unit="batch", leave=False):
            decoder.inner(input_ids=batch, use_cache=False)
    return FoldedBases(_axes(stream.sum), {block: _axes(moments.sum) for block, moments in enumerate(values)})


def _recorders(
    calibration: Calibration, stream: SecondMoments, values: list[SecondMoments]
) -> Iterator[RemovableHandle]:
    decoder = decoder_of(calibration.model)
    shape = decoder.shape
    grouped = (shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim)

    def of_norm(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        hidden = inputs[0].float()
        stream.add(hidden * torch.rsqrt(hidden.square().mean(dim=-1, keepdim=True) + norm.variance_epsilon))

    def of_heads(moments: SecondMoments) -> Callable[..., None]:
        def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            by_head = inputs[0].unflatten(-1, grouped)  # heads of q that share one of k and v lie side by side
            for member in range(grouped[1]):
                moments.add(by_head[..., member, :])

        return record

    for block, moments in zip(decoder.blocks, values, strict=True):
        for path in NORM_PATHS.values():
            yield block.get_submodule(path).register_forward_pre_hook(of_norm)
        yield block.get_submodule(PROJECTION_PATHS["o"]).register_forward_pre_hook(of_heads(moments))


def _axes(moments: Tensor) -> Tensor:
    """Eigenvectors (..., channels, channels) float32, those of the largest eigenvalues first."""
    if not moments.isfinite().all():
        raise UserError("activations are not finite on the calibration text; try model.dtype=float32")
    return torch.linalg.eigh(moments).eigenvectors.flip(-1).float().contiguous()
