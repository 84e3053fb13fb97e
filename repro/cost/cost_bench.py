"""Bench that stages are measured on: seconds and device memory of so many evaluations."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType

import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import PreTrainedModel

from ...baselines.rsparse import BudgetedRules, RSparse
from ...baselines.teal import TEAL
from ...method.base import Method
from ...method.calibration import Calibration
from ...method.plan import SparsityPlan
from ...method.projections import decoder_blocks, model_projections
from ...method.wisparse.method import WiSparse


@dataclass(frozen=True)
class Measurement:
    """One stage: what was measured, and how much of it a whole run has."""

    stage: str
    unit: str
    """Unit of one evaluation: a sequence, a candidate, a block, ..."""
    tokens: int
    """Tokens of one evaluation."""
    measured: int
    """Evaluations measured."""
    seconds: float
    """Seconds of these evaluations."""
    total: int | None
    """Evaluations of a whole run at the budget, at most; None: a rate, that of evaluation."""
    setup_seconds: float = 0.0
    """Once, before the first evaluation."""
    peak_bytes: int | None = None
    """Highest device memory, the model included; None without a GPU."""


class Watch:
    """Seconds, and highest device memory, of what runs inside; waits for the device at both ends."""

    seconds: float
    peak_bytes: int | None = None

    def __enter__(self) -> Watch:
        """Start."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Stop."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.peak_bytes = torch.cuda.max_memory_allocated()
        self.seconds = time.perf_counter() - self._started


@dataclass
class Bench:
    """A model, random calibration tokens and settings; see conf/search_cost.yaml."""

    model: PreTrainedModel
    calibration: Calibration
    sparsity: float
    cost: DictConfig
    _plans: dict[str, SparsityPlan] = field(default_factory=dict, init=False, repr=False)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(decoder_blocks(self.model))

    def random_ids(self, rows: int, length: int, seed: int) -> Tensor:
        """Token ids (rows, length) on the model's device."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(self.model.config.vocab_size, (rows, length), generator=generator)
        return ids.to(self.calibration.device)

    def plan(self, method: Method) -> SparsityPlan:
        """`made_plan`, of which the last is kept: several stages use it."""
        if method.name not in self._plans:
            self._plans = {method.name: self.made_plan(method)}
        return self._plans[method.name]

    def made_plan(self, method: Method) -> SparsityPlan:
        """A plan of the method's masks with every projection at the same sparsity: it costs what any does.

        R-Sparse's has random factors, and the share of its budget that it has without a search.
        """
        if isinstance(method, RSparse):
            shapes = self.calibration.shapes
            return SparsityPlan(shapes, self.random_factors(method).rules((method.share,) * len(shapes)))
        if isinstance(method, TEAL | WiSparse):
            sparsities = dict.fromkeys(self.calibration.shapes, self.sparsity)
            return method.rule_builder(self.calibration).plan(sparsities)
        return method.plan(self.calibration, self.sparsity)

    def random_factors(self, method: RSparse) -> BudgetedRules:
        """R-Sparse's rules with random factors of the largest rank: what they hold changes no cost."""
        budgeted = BudgetedRules(self.calibration, self.sparsity, method.score)
        for name, linear in model_projections(self.model).items():
            rank, weight = budgeted.rank(name, 0.0), linear.weight
            sides = (linear.out_features, rank), (rank, linear.in_features)
            budgeted.factors[name] = tuple(weight.new_empty(side).normal_(std=0.01) for side in sides)
        return budgeted
