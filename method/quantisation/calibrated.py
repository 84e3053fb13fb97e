"""Weights in 4 bits that keep the products on the calibration text: GPTQ, block by block."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from ...kernels.errors import KernelError
from ...kernels.plan_data import Mechanism
from ...kernels.quantised.stored import StoredWeight
from ..calibration import Calibration, InputProducts, input_recorder
from ..errors import UserError
from ..hooks import hooked
from ..projections import SITE_OF_PROJECTION, block_projections, decoder_of, key, projections_of_site, split_key
from ..search.block_probe import block_keywords
from .gptq import gptq, inverse_factor
from .model import LM_HEAD, QuantisedWeights, replaced, stored_by
from .quantisers import Int4

ROTATIONS = (
    "weights calibrated in 4 bits are not calibrated in rotated bases; take a method without rotations, or "
    "quantisation=int4"
)


@dataclass(frozen=True)
class CalibratedInt4(Int4):
    """GPTQ on the calibration text; a block's inputs are what the quantised blocks before it make."""

    damping: float
    """Share of the mean of XᵀX's diagonal that is added to it, above 0."""

    @property
    def description(self) -> str:
        """See `Quantiser`."""
        return f"{super().description}, calibrated by GPTQ with damping {self.damping:g}"

    def check_method(self, mechanisms: Collection[Mechanism]) -> None:
        """See `Quantiser`: rotated bases are refused."""
        if Mechanism.ROTATION in mechanisms:
            raise UserError(f"quantisation={self.name}: {ROTATIONS}")

    @torch.no_grad()
    def weights(self, calibration: Calibration) -> QuantisedWeights:
        """See `Quantiser`. The model is as before afterwards."""
        self.check_model(calibration.model)
        decoder = decoder_of(calibration.model)
        batches = calibration.input_ids.split(calibration.batch_size)
        hidden = [decoder.embedding(batch.to(calibration.device)) for batch in batches]
        keywords = block_keywords(calibration.model, batches[0][:1].to(calibration.device))
        found: dict[str, StoredWeight] = {}
        for index, block in enumerate(tqdm(decoder.blocks, desc="GPTQ", unit="block", leave=False)):
            linears = block_projections(block)
            sites = {SITE_OF_PROJECTION[name]: InputProducts() for name in linears}
            with hooked(
                linears[projections_of_site(site)[0]].register_forward_pre_hook(input_recorder(one))
                for site, one in sites.items()
            ):
                for states in hidden:
                    block(states, **keywords[index])
            factors = {site: self._factor(key(index, site), one) for site, one in sites.items()}
            by_key = {key(index, name): linear for name, linear in linears.items()}
            found |= stored_by(by_key, self._calibrated(factors))
            with replaced(by_key, found):
                hidden = [block(states, **keywords[index]) for states in hidden]
        if self.lm_head != "same":
            found |= self._head(calibration.model)
        else:
            products = InputProducts()
            for states in hidden:
                products.update(decoder.final_norm(states))
            factors = {LM_HEAD: self._factor(LM_HEAD, products)}
            found |= stored_by({LM_HEAD: decoder.lm_head}, self._calibrated(factors))
        return QuantisedWeights(self.full_description, found, self._refused)

    def _factor(self, place: str, products: InputProducts) -> Tensor:
        if not products.matrix.isfinite().all():
            raise UserError(
                f"quantisation={self.name}: what enters {place} is not finite on the calibration text; "
                "load the model in float32 or bfloat16 (model.dtype)"
            )
        return inverse_factor(products.matrix, self.damping)

    def _calibrated(self, factors: Mapping[str, Tensor]) -> Callable[[str, Tensor], StoredWeight]:
        """What stores a weight by its name; factors by site, and of the head."""

        def store(name: str, weight: Tensor) -> StoredWeight:
            site = LM_HEAD if name == LM_HEAD else SITE_OF_PROJECTION[split_key(name)[1]]
            try:
                return gptq(weight, factors[site], self.group, self.symmetric)
            except KernelError as error:
                raise self._refusal(name, error) from error

        return store

    def _refused(self, name: str, _: Tensor) -> StoredWeight:
        raise UserError(f"quantisation={self.name}: {name}: {ROTATIONS}")
