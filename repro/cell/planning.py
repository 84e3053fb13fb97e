"""Calibration and plan of a cell: one method on one model and text, at any sparsity, each plan cached."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from ...method.base import Method
from ...method.calibration import Calibration
from ...method.heads.choice import AllHeads, PolarHeads, with_heads
from ...method.passes.progress import Progress
from ...method.plan import SparsityPlan
from ...method.quantisation.quantisers import NoQuantisation, Quantiser
from ...method.quantised_model import QuantisedWeights
from ...method.search.budget import SearchBudget
from ...method.token_policy import TokenPolicy
from ..configuration import digest, portable
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
    heads: AllHeads | PolarHeads
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
        """The method's plan at a sparsity, with routers of heads where there are any; from the cache if there.

        Routers are trained on the dense model, once for all methods and sparsities.
        """
        settings = {
            "method": portable(self.config.method),
            "search_tokens": self._search_policy() and portable(self.config.protocol),
        }
        found = self._found(
            settings,
            {"sparsity": sparsity},
            lambda calibration, progress: self.method.plan(calibration, sparsity, progress),
        )
        if isinstance(self.heads, AllHeads):
            return found
        routers = self._found(
            {"heads": portable(self.config.heads)},
            {},
            lambda calibration, _: self.heads.plan(calibration, self.config.seed),
        )
        return CachedPlan(
            with_heads(found.plan, routers.plan, self.loaded.model),
            digest([found.key, routers.key]),
            digest([found.sha256, routers.sha256]),
            found.from_cache and routers.from_cache,
        )

    def _found(
        self,
        settings: dict[str, Any],
        others: dict[str, Any],
        make: Callable[[Calibration, Progress], SparsityPlan],
    ) -> CachedPlan:
        """A plan from the cache, or made now on the calibration text; settings may name classes."""
        settings = {**settings, "quantisation": portable(self.config.quantisation)}
        identity = {
            **settings,
            **others,
            "seed": self.config.seed,
            "model": model_identity(self.loaded.checkpoint),
            "calibration": {
                "input_ids": ids_digest(self.input_ids),
                "shape": list(self.input_ids.shape),
                "batch_size": self.batch_size,
            },
            "sources": sources_digest({LOADING, *targets(settings)}),
        }

        def checked(progress: Progress) -> SparsityPlan:
            set_seeds(self.config.seed)
            calibration = _calibration(self.loaded, self._text(), self._search_policy(), self.quantisation)
            plan = make(calibration, progress)
            self.loaded.check_weights()
            return plan

        return PlanCache(Path(self.config.cache_dir)).find_or_make(identity, checked)

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
