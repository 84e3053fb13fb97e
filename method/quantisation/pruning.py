"""Weights pruned instead of activations: Wanda, and optimal brain surgery with a sparsity by sensitivity.

References for what a token reads: all of its activations meet fewer weights. Blocks are pruned one after the
other on the calibration text; the head stays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.model.held_weights import samples_of_present
from ...kernels.quantised.pruned import INDICES, PrunedWeight
from ...kernels.quantised.stored import StoredWeight
from ..calibration import Calibration
from ..errors import UserError
from ..passes.collectors import ChannelMoments, collected_inputs
from ..projections import SITE_OF_PROJECTION, model_projections, projections_of_site, split_key
from ..quantised_model import QuantisedWeights
from .block_by_block import check_finite, stored_block_by_block
from .gptq import check_damped_by, compensated, inverse_factor
from .quantisers import Weights

AMONG = ("all", "output")
"""Weights among which the least salient are chosen: those of all outputs together, or those of each."""


@dataclass(frozen=True)
class Pruner(Weights, ABC):
    """How weights are pruned; `conf/quantisation` documents the settings."""

    sparsity: float
    """Share of the block projections' weights that become zero."""
    index: str
    """What says which weights are kept, counted as bytes: none, or a bitmap."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.index not in INDICES:
            raise UserError(f"quantisation.index is {self.index!r}; choose {', '.join(INDICES)}")

    @property
    def formats(self) -> dict[str, int]:
        """See `Weights`."""
        return {PrunedWeight.format: PrunedWeight.group}

    @property
    @abstractmethod
    def description(self) -> str:
        """How, and how many; two pruners that differ in anything differ in it."""

    @abstractmethod
    def _prepare(self, place: str, products: Tensor) -> Tensor:
        """What pruning needs of a site, from XᵀX of its inputs."""

    @abstractmethod
    def _pruned(self, weight: Tensor, prepared: Tensor, sparsity: float) -> Tensor:
        """The weight (in, out) with this share of zeros."""

    def _sparsities(self, calibration: Calibration) -> Mapping[str, float]:
        """Sparsity of every projection, by key."""
        return dict.fromkeys(calibration.shapes, self.sparsity)

    def check_activations(self, dense: bool) -> None:
        """See `Weights`: which of the kept weights a kept channel or group has is not counted."""
        if not dense:
            raise UserError(
                f"quantisation={self.name}: pruned weights are measured with dense activations alone; "
                "take method=dense and heads=none"
            )

    @torch.no_grad()
    def weights(self, calibration: Calibration) -> QuantisedWeights:
        """See `Quantiser`. The model is as before afterwards."""
        samples = samples_of_present(calibration.model, "prune")
        sparsities = self._sparsities(calibration)

        def store(name: str, weight: Tensor, prepared: Tensor) -> StoredWeight:
            pruned = self._pruned(weight, prepared, sparsities[name])
            return PrunedWeight(pruned.to(weight.dtype).contiguous(), self.index)

        found, _ = stored_block_by_block(calibration, self.name, self._prepare, store)
        counted = "without an index" if self.index == "none" else f"with a {self.index}"
        whole = f"{self.description}, {counted}, lm_head as it was"
        return QuantisedWeights(whole, found, self._refused, samples)

    def _refused(self, name: str, _: Tensor) -> StoredWeight:
        raise UserError(f"quantisation={self.name}: {name} is not pruned in rotated bases; take method=dense")


@dataclass(frozen=True)
class Wanda(Pruner):
    """Wanda (arXiv 2306.11695): the lowest |w|·‖x‖ of each output become zero, the others stay as they are."""

    @property
    def description(self) -> str:
        """See `Pruner`."""
        return f"{100 * self.sparsity:g}% zeros by Wanda"

    def _prepare(self, place: str, products: Tensor) -> Tensor:
        check_finite(self.name, place, products)
        return products.diagonal().sqrt()

    def _pruned(self, weight: Tensor, prepared: Tensor, sparsity: float) -> Tensor:
        order = (weight.double().abs() * prepared[:, None]).argsort(dim=0, stable=True)
        return weight.scatter(0, order[: int(sparsity * len(weight) + 1e-9)], 0.0)


@dataclass(frozen=True)
class SensitivityPruner(Pruner):
    """Optimal brain surgery channel by channel, as SparseGPT has it (arXiv 2301.00774), at mixed sparsities.

    A projection's sparsity follows from the rank of its sensitivity among all of the model's: the mean trace of
    XᵀX, as far as arXiv 2310.09499 was readable; its map from sensitivity to sparsity was not.
    """

    spread: float
    """Most that a projection's sparsity may lie from the middle one; 0: all the same."""
    damping: float
    """Share of XᵀX's diagonal that is added to it, above 0."""
    block: int
    """Input channels among which the least salient weights are chosen together."""
    among: str = "all"
    """Which weights of such channels: one of AMONG."""
    damped_by: str = "mean"
    """What `damping` is a share of: see `damped_channels`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damped_by(self.damped_by)
        if self.among not in AMONG:
            raise UserError(f"quantisation.among is {self.among!r}; choose {' or '.join(AMONG)}")
        if self.block < 1:
            raise UserError(f"quantisation.block={self.block} must be at least 1; try 128")

    @property
    def description(self) -> str:
        """See `Pruner`."""
        of = " of each channel" if self.damped_by == "own" else ""
        mixed = f", ±{100 * self.spread:g}% by sensitivity" if self.spread else ""
        each = " for each output" if self.among == "output" else ""
        return (
            f"{100 * self.sparsity:g}% zeros by optimal brain surgery{mixed}, "
            f"damping {self.damping:g}{of}, {self.block} channels at once{each}"
        )

    def _sparsities(self, calibration: Calibration) -> Mapping[str, float]:
        linears = model_projections(calibration.model)
        first = {name: one for name, one in linears.items() if _first_of_site(name) == name}
        moments = collected_inputs(
            {name: ChannelMoments() for name in first},
            first,
            calibration.model,
            calibration.input_ids,
            calibration.batch_size,
        )
        traces = {name: float(moments[_first_of_site(name)].mean_squared().mean()) for name in linears}
        sizes = {name: linear.weight.numel() for name, linear in linears.items()}
        found = mixed_sparsities(traces, sizes, self.sparsity, self.spread)
        if not all(0.0 <= sparsity < 1.0 for sparsity in found.values()):
            least, most = min(found.values()), max(found.values())
            raise UserError(
                f"quantisation.spread={self.spread} is too wide around sparsity {self.sparsity}: projections "
                f"would have {least:.3f} to {most:.3f}; give a smaller one"
            )
        return found

    def _prepare(self, place: str, products: Tensor) -> Tensor:
        check_finite(self.name, place, products)
        return inverse_factor(products, self.damping, self.damped_by)

    def _pruned(self, weight: Tensor, prepared: Tensor, sparsity: float) -> Tensor:
        return surgically_pruned(weight, prepared, sparsity, self.block, self.among)


def _first_of_site(name: str) -> str:
    """Key of the first projection that reads what this one reads."""
    block, projection = split_key(name)
    return f"{block}.{projections_of_site(SITE_OF_PROJECTION[projection])[0]}"


def mixed_sparsities(
    sensitivities: Mapping[str, float], sizes: Mapping[str, int], sparsity: float, spread: float
) -> dict[str, float]:
    """Sparsities that fall with the rank of a sensitivity, from +spread to −spread, with this mean by size."""
    ordered = sorted(sensitivities, key=lambda name: (sensitivities[name], name))
    last = max(1, len(ordered) - 1)
    offsets = {name: spread * (1.0 - 2.0 * rank / last) for rank, name in enumerate(ordered)}
    total = sum(sizes.values())
    mean = sum(offsets[name] * sizes[name] for name in ordered) / total
    return {name: sparsity + offsets[name] - mean for name in sensitivities}


def surgically_pruned(
    weight: Tensor, factor: Tensor, sparsity: float, block: int, among: str = "all"
) -> Tensor:
    """The weight (in, out) with zeros where w²/[H⁻¹] is least, and the others changed to make up for them.

    factor: `inverse_factor` of XᵀX. The zeros are chosen among `block` channels at a time, of all outputs or of
    each (`among`), at the weights as they are by then. So many are zero up to each block that their share
    is the one asked for, whatever the size of blocks.
    """
    kept: Tensor | None = None

    def stored(channel: int, remaining: Tensor) -> Tensor:
        nonlocal kept
        if channel % block == 0:
            some = remaining[:block]
            saliency = (some / factor.diagonal()[channel : channel + block, None].to(some.device)).square()
            competing = saliency.reshape(-1, 1) if among == "all" else saliency
            width = len(competing) // len(some)
            zero_before, zero_then = (round(sparsity * end * width) for end in (channel, channel + len(some)))
            order = competing.argsort(dim=0, stable=True)[: zero_then - zero_before]
            kept = torch.ones_like(competing).scatter(0, order, 0.0).view_as(some)
        return remaining[0] * kept[channel % block]

    return compensated(weight, factor, stored)
