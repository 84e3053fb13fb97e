"""What signs predict on the calibration text: neurons by their negative products, active, negative or zero."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...kernels.plan.signs import negative_products, packed_signs, plus_minus
from ..calibration import Calibration
from ..hooks import hooked
from ..projections import GATE_ACTIVATION_PATH, PROJECTION_PATHS, decoder_blocks, decoder_of


@dataclass
class PredictedNeurons:
    """Neurons of one block over a text by how many negative products they have, (hidden + 1,) int64."""

    active: Tensor
    """Neurons whose gate is above 0."""
    zero: Tensor
    """Neurons whose activated gate is exactly 0."""
    every: Tensor
    """All neurons."""

    def limit(self, recall: float) -> int:
        """Least number of negative products that this share of the active neurons does not exceed."""
        running = self.active.cumsum(0)
        # In whole numbers: beside a float32 a share of more than 16 million neurons would lose single ones.
        least = math.ceil(recall * int(running[-1]) - 1e-6)
        return int((running < least).sum())

    def predicted(self, limit: int) -> float:
        """Share of all neurons that are taken to be zero."""
        return float(self.every[limit + 1 :].sum() / self.every.sum())

    def zeros(self, limit: int) -> float:
        """Share of all neurons that are zero once those that are predicted to be are."""
        known = self.every[limit + 1 :].sum() + self.zero[: limit + 1].sum()
        return float(known / self.every.sum())

    def recall(self, limit: int) -> float:
        """Share of the active neurons that are computed; 1 where none is active."""
        active = self.active.sum()
        return float(self.active[: limit + 1].sum() / active) if active else 1.0

    def precision(self, limit: int) -> float:
        """Share of the neurons taken to be zero whose gate is not above 0; 1 where none is."""
        taken = self.every[limit + 1 :].sum()
        return 1.0 - float(self.active[limit + 1 :].sum() / taken) if taken else 1.0


def alpha_of(limit: int, channels: int) -> float:
    """SparseInfer's α, negative over positive products: the largest at which the limit is not exceeded."""
    return limit / (channels - limit) if limit < channels else float("inf")


@torch.inference_mode()
def predicted_neurons(calibration: Calibration) -> list[PredictedNeurons]:
    """Counts of every block from one dense pass over the calibration text."""
    blocks = decoder_blocks(calibration.model)
    found: list[PredictedNeurons] = []
    inner = decoder_of(calibration.model).inner
    with hooked(handle for block in blocks for handle in _counters(block, found)):
        for batch in calibration.input_ids.split(calibration.batch_size):
            inner(input_ids=batch.to(calibration.device), use_cache=False)
    return found


def _counters(block: nn.Module, found: list[PredictedNeurons]) -> Iterator[RemovableHandle]:
    gate = block.get_submodule(PROJECTION_PATHS["gate"])
    weight = gate.weight
    bins = gate.in_features + 1
    counts = PredictedNeurons(*(torch.zeros(bins, dtype=torch.int64, device=weight.device) for _ in range(3)))
    unpacked = plus_minus(packed_signs(weight), gate.in_features)
    negative: list[Tensor] = []
    found.append(counts)

    def products(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        negative[:] = [negative_products(inputs[0], unpacked).long().flatten()]
        counts.every += negative[0].bincount(minlength=bins)
        counts.active += negative[0][output.flatten() > 0].bincount(minlength=bins)

    def zeros(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        counts.zero += negative.pop()[output.flatten() == 0].bincount(minlength=bins)

    yield gate.register_forward_hook(products)
    yield block.get_submodule(GATE_ACTIVATION_PATH).register_forward_hook(zeros)
