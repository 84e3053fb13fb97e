"""Calibration and plan of a cell: one method on one model and text, at any sparsity, each plan cached."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from ...method.base import Method
from ...method.calibration import Calibration
from ...method.plan import SparsityPlan
from ...method.quantisation.model import QuantisedWeights
from ...method.quantisation.quantisers import NoQuantisation, Quantiser
from ...method.running.progress import Progress
from ...method.search.budget import SearchBudget
from ...method.token_policy import TokenPolicy
from ..configuration import portable
from ..models.checkpoint import Checkpoint, LoadedModel
from ..models.weights import ATTENTION
from .identity import sources_digest, targets
from .plan_cache import CachedPlan, PlanCache

LOADING = "wisparse.repro.models.checkpoint"
"""Module that makes weights of a checkpoint: a plan depends on its code, and on that of its method."""


@dataclass(frozen=True, eq=False)
class Planner:
    """Maker of a cell's plans."""

    config: DictConfig
    method: Method
    protocol: TokenPolicy
    quantisation: Quantiser | NoQuantisation
    batch_size: int
    """Calibration sequences a forward pass."""
    loaded: LoadedModel
    input_ids: Tensor
    """(sequences, length) calibration text."""

    def weights(self) -> QuantisedWeights | None:
        """What the model is to compute with while plans are made and evaluated; None: its own weights.

        Kept for the next cell of a sweep on the same model and text.
        """
        return _weights(self.loaded, self._text(), self.quantisation)

    def plan(self, sparsity: float) -> CachedPlan:
        """The method's plan at a sparsity, from the cache where it is there."""
        settings = {
            "method": portable(self.config.method),
            "quantisation": portable(self.config.quantisation),
            "search_tokens": self._search_policy() and portable(self.config.protocol),
        }
        identity = {
            **settings,
            "sparsity": sparsity,
            "seed": self.config.seed,
            "model": model_identity(self.loaded.checkpoint),
            "calibration": {
                "input_ids": ids_digest(self.input_ids),
                "shape": list(self.input_ids.shape),
                "batch_size": self.batch_size,
            },
            "sources": sources_digest({LOADING, *targets(settings)}),
        }

        def make(progress: Progress) -> SparsityPlan:
            set_seeds(self.config.seed)
            calibration = _calibration(self.loaded, self._text(), self._search_policy(), self.quantisation)
            plan = self.method.plan(calibration, sparsity, progress)
            self.loaded.check_weights()
            return plan

        return PlanCache(Path(self.config.cache_dir)).find_or_make(identity, make)

    def _text(self) -> _CalibrationText:
        return _CalibrationText(ids_digest(self.input_ids), self.batch_size, self.input_ids)

    def _search_policy(self) -> TokenPolicy | None:
        """Which tokens are sparse while the method searches; None: all."""
        return self.protocol if SearchBudget(**self.config.search).sparse_tokens == "protocol" else None


@dataclass(frozen=True)
class _CalibrationText:
    """Token ids that compare by their hash and batch size."""

    sha256: str
    batch_size: int
    input_ids: Tensor = field(compare=False)


@lru_cache(maxsize=1)  # its statistics are shared by all methods of a sweep on the same model and text
def _calibration(
    loaded: LoadedModel,
    text: _CalibrationText,
    search_policy: TokenPolicy | None,
    _: Quantiser | NoQuantisation,  # what is found on other weights is another thing
) -> Calibration:
    return Calibration(loaded.model, text.input_ids, text.batch_size, search_policy)


@lru_cache(maxsize=1)
def _weights(
    loaded: LoadedModel, text: _CalibrationText, quantisation: Quantiser | NoQuantisation
) -> QuantisedWeights | None:
    return quantisation.weights(Calibration(loaded.model, text.input_ids, text.batch_size))


def model_identity(checkpoint: Checkpoint) -> dict[str, str | None]:
    """Parts of a checkpoint's configuration that determine results."""
    return {
        "fingerprint": checkpoint.fingerprint,
        "companions": checkpoint.companions,
        "dtype": checkpoint.dtype,
        "attention": ATTENTION,
        "device": checkpoint.device.partition(":")[0],
    }


def ids_digest(input_ids: Tensor) -> str:
    """sha256 of token ids."""
    return hashlib.sha256(input_ids.to(torch.int64).numpy().tobytes()).hexdigest()


def set_seeds(seed: int) -> None:
    """Seed every generator in use."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
