"""Quantisers of a model's linears: none, and rounding to the nearest value in 8 or 4 bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import gcd

from torch import Tensor
from transformers import PreTrainedModel

from ...kernels.errors import KernelError
from ...kernels.model.held_weights import samples_of_present
from ...kernels.plan.mechanism import Mechanism
from ...kernels.quantised.int4 import Int4Weight, int4_rounded
from ...kernels.quantised.int8 import Int8Weight, int8_rounded
from ...kernels.quantised.stored import StoredWeight
from ...kernels.weight_samples import Samples
from ..calibration import Calibration
from ..errors import UserError
from ..projections import decoder_of, model_projections
from ..quantised_model import LM_HEAD, QuantisedWeights, quantised_linears, stored_by
from ..running.acting import check_no_plan
from ..settings import Settings

HEADS = {"none": "as it was", "int8": "int8 by row and column", "same": "too"}
"""What may become of the head, and how descriptions say it."""
QUANTISE = "quantise"
"""What is to be done at another time, where a model's weights are others meanwhile."""


@dataclass(frozen=True)
class Weights(Settings):
    """What a model's weights may become before anything is calibrated; refuses nothing by itself."""

    name: str

    @property
    def formats(self) -> dict[str, int]:
        """Formats of the weights that the decode engine would read, and how many outputs share a scale.

        0: all do. None where they are the model's own.
        """
        return {}

    def check_method(self, mechanisms: Collection[Mechanism]) -> None:
        """Raises UserError for a method whose plans this cannot go with; asked before weights are loaded."""

    def check_activations(self, dense: bool) -> None:
        """Raises UserError where these weights go with dense activations alone; asked as early.

        dense: whether every token reads all weights. A sparsity of 0 does not make it so: exact zeros are
        skipped there as well.
        """

    def check_model(self, model: PreTrainedModel) -> None:
        """Raises UserError that names the first linear of a shape which the format cannot hold."""


@dataclass(frozen=True)
class NoQuantisation(Weights):
    """The model's own weights."""

    def weights(self, calibration: Calibration) -> None:
        """Nothing to store."""


@dataclass(frozen=True)
class Quantiser(Weights, ABC):
    """A format with its settings, and how weights are brought into it; `conf/quantisation` documents them."""

    lm_head: str
    """The head: `none` leaves it alone, `int8` is 8 bits by row and column, `same` what the projections are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lm_head not in HEADS:
            raise UserError(f"quantisation.lm_head is {self.lm_head!r}; choose {', '.join(HEADS)}")

    @property
    def formats(self) -> dict[str, int]:
        """See `Weights`."""
        return {self._format: self._group} | ({Int8Weight.format: 0} if self.lm_head == "int8" else {})

    @property
    def _group(self) -> int:
        """Outputs that share a scale; 0: all do."""
        return 0

    @property
    @abstractmethod
    def _format(self) -> str:
        """Format of the projections."""

    @property
    @abstractmethod
    def description(self) -> str:
        """Format and settings in words; two quantisers that differ in anything differ in it."""

    @abstractmethod
    def _rounded(self, weight: Tensor) -> StoredWeight:
        """The nearest stored weight to (in, out)."""

    def weights(self, calibration: Calibration) -> QuantisedWeights:
        """Stored weights of a model's linears. Raises UserError that names the first that cannot be stored."""
        self.check_model(calibration.model)
        samples = samples_of_present(calibration.model, QUANTISE)
        check_no_plan(calibration.model, "a quantisation")
        found = stored_by(model_projections(calibration.model), self.anew) | self._head(calibration.model)
        return self._whole(found, samples)

    def _whole(self, found: Mapping[str, StoredWeight], samples: Samples) -> QuantisedWeights:
        """Stored weights with all that tells which they are; samples: of those that they were made of."""
        return QuantisedWeights(self.full_description, found, self.anew, samples)

    def _head(self, model: PreTrainedModel) -> dict[str, StoredWeight]:
        """The stored head by its name, rounded to nearest; nothing where it is left alone."""
        if self.lm_head == "none":
            return {}
        return stored_by(
            {LM_HEAD: decoder_of(model).lm_head},
            self._head_in_8_bits if self.lm_head == "int8" else self.anew,
        )

    def _head_in_8_bits(self, name: str, weight: Tensor) -> StoredWeight:
        try:
            return int8_rounded(weight)
        except KernelError as error:
            raise self._refusal(name, error) from error

    @property
    def full_description(self) -> str:
        """The description, and what became of the head."""
        return f"{self.description}, lm_head {HEADS[self.lm_head]}"

    def anew(self, name: str, weight: Tensor) -> StoredWeight:
        """Stored form of another weight (in, out) of a linear, here the nearest.

        Raises UserError that names the linear.
        """
        try:
            return self._rounded(weight)
        except KernelError as error:
            raise self._refusal(name, error) from error

    def _refusal(self, name: str, error: KernelError) -> UserError:
        return UserError(f"quantisation={self.name}: {name}: {error}")


@dataclass(frozen=True)
class Int8(Quantiser):
    """8 bits with a scale for each row and column; see `int8_rounded`."""

    _format = Int8Weight.format

    @property
    def description(self) -> str:
        """See `Quantiser`."""
        return "int8 by row and column"

    def _rounded(self, weight: Tensor) -> StoredWeight:
        return int8_rounded(weight)


@dataclass(frozen=True)
class Int4(Quantiser):
    """4 bits in groups of neighbouring outputs; see `int4_rounded`."""

    group: int
    """Outputs that share a scale."""
    symmetric: bool
    """Whether groups have no zero point."""
    _format = Int4Weight.format

    @property
    def _group(self) -> int:
        """See `Quantiser`."""
        return self.group

    @property
    def description(self) -> str:
        """See `Quantiser`."""
        return f"int4 in groups of {self.group} outputs, {'' if self.symmetric else 'a'}symmetric"

    def check_model(self, model: PreTrainedModel) -> None:
        """See `Quantiser`: the group has to divide the outputs of every linear."""
        outputs = {
            name: one.out_features for name, one in quantised_linears(model, self.lm_head == "same").items()
        }
        common = gcd(*outputs.values())
        for name, number in outputs.items():
            if number % self.group:
                fitting = max(size for size in range(1, min(self.group, common) + 1) if common % size == 0)
                raise UserError(
                    f"quantisation.group={self.group} does not divide the {number} outputs of {name}; the "
                    f"largest below it that divides those of all is quantisation.group={fitting}"
                )

    def _rounded(self, weight: Tensor) -> StoredWeight:
        return int4_rounded(weight, self.group, self.symmetric)
