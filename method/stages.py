"""Seconds and evaluations that each stage of a method costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class SearchCost:
    """Cost of building a plan; goes into the plan's provenance."""

    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage, in order."""
    evaluations: dict[str, int] = field(default_factory=dict)
    """Evaluations by stage: of the model (evolutionary) or of a block (greedy, α)."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage, waiting for the GPU at its end."""
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - started

    def count(self, stage: str, evaluations: int) -> None:
        """Add evaluations to a stage."""
        self.evaluations[stage] = self.evaluations.get(stage, 0) + evaluations

    def to_dict(self) -> dict[str, object]:
        """JSON-able form for `SparsityPlan.provenance`."""
        return {
            "stages": {name: round(seconds, 3) for name, seconds in self.stages.items()},
            "evaluations": sum(self.evaluations.values()),
            "evaluations_by_stage": dict(self.evaluations),
        }
