"""Weights in 4 bits that keep the products on the calibration text: GPTQ, block by block."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.errors import KernelError
from ...kernels.model.held_weights import samples_of_present
from ...kernels.plan.mechanism import Mechanism
from ...kernels.quantised.stored import StoredWeight
from ..calibration import Calibration
from ..errors import UserError
from ..passes.collectors import InputProducts
from ..projections import SITE_OF_PROJECTION, decoder_of
from ..quantised_model import LM_HEAD, QuantisedWeights, stored_by
from .block_by_block import check_finite, stored_block_by_block
from .gptq import check_damped_by, gptq, inverse_factor
from .quantisers import QUANTISE, Int4

ROTATIONS = (
    "weights calibrated in 4 bits are not calibrated in rotated bases; take a method without rotations, or "
    "quantisation=int4"
)


@dataclass(frozen=True)
class CalibratedInt4(Int4):
    """GPTQ on the calibration text; a block's inputs are what the quantised blocks before it make."""

    damping: float
    """Share of XᵀX's diagonal that is added to it, above 0."""
    damped_by: str = "mean"
    """What it is a share of: see `damped_channels`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damped_by(self.damped_by)

    @property
    def description(self) -> str:
        """See `Quantiser`."""
        own = " of each channel" if self.damped_by == "own" else ""
        return f"{super().description}, calibrated by GPTQ with damping {self.damping:g}{own}"

    def check_method(self, mechanisms: Collection[Mechanism]) -> None:
        """See `Quantiser`: rotated bases are refused."""
        if {Mechanism.ROTATION, Mechanism.FOLDED} & set(mechanisms):
            raise UserError(f"quantisation={self.name}: {ROTATIONS}")

    @torch.no_grad()
    def weights(self, calibration: Calibration) -> QuantisedWeights:
        """See `Quantiser`. The model is as before afterwards."""
        return self._weights(calibration, SITE_OF_PROJECTION.__getitem__)

    @torch.no_grad()
    def weights_of_own_inputs(self, calibration: Calibration) -> QuantisedWeights:
        """The same on what each projection reads by itself, which hooks on the linears may have masked."""
        return self._weights(calibration, str)

    def _weights(self, calibration: Calibration, place_of: Callable[[str], str]) -> QuantisedWeights:
        self.check_model(calibration.model)
        samples = samples_of_present(calibration.model, QUANTISE)
        decoder = decoder_of(calibration.model)
        found, hidden = stored_block_by_block(calibration, "GPTQ", self._factor, self._calibrated, place_of)
        if self.lm_head != "same":
            found |= self._head(calibration.model)
        else:
            products = InputProducts()
            for states in hidden:
                products.update(decoder.final_norm(states))
            factor = self._factor(LM_HEAD, products.matrix)
            found |= stored_by(
                {LM_HEAD: decoder.lm_head}, lambda name, weight: self._calibrated(name, weight, factor)
            )
        return self._whole(found, samples)

    def _factor(self, place: str, products: Tensor) -> Tensor:
        check_finite(self.name, place, products)
        return inverse_factor(products, self.damping, self.damped_by)

    def _calibrated(self, name: str, weight: Tensor, factor: Tensor) -> StoredWeight:
        try:
            return gptq(weight, factor, self.group, self.symmetric)
        except KernelError as error:
            raise self._refusal(name, error) from error

    def anew(self, name: str, _: Tensor) -> StoredWeight:
        """See `Quantiser`: there is none without a calibration of its own."""
        raise UserError(f"quantisation={self.name}: {name}: {ROTATIONS}")
