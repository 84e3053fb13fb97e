"""Where a plan comes from: its method and sparsity, what making it took, and what the method found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .passes.progress import Progress


@dataclass
class SearchCost:
    """Seconds and evaluations that each stage of a method took, with what it has found so far."""

    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage, in order."""
    evaluations: dict[str, int] = field(default_factory=dict)
    """Evaluations by stage: of the model (evolutionary), or of a block (greedy, α)."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage, waiting for the GPU at its end."""
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.stages[name] = self.stages.get(name, 0.0) + time.perf_counter() - started

    progress: Progress = field(default_factory=Progress, repr=False, compare=False)
    """What is kept for the case that the search is cut off."""

    def step(self, stage: str, key: str, find: Callable[[], Any]) -> Any:
        """What `find` returns, or returned before the search was cut off; with the evaluations it counted then.

        The key tells the step from others of its stage. The value is plain data: None, numbers, strings, lists
        and dicts of these by strings. A search whose steps depend on these values alone ends as if it had never
        been cut off.
        """
        kept = self.progress.done(stage, key)
        if kept is None:
            started, before = time.perf_counter(), dict(self.evaluations)
            kept = {"value": find()}
            kept["seconds"] = time.perf_counter() - started
            kept["evaluations"] = {
                name: number - before.get(name, 0)
                for name, number in self.evaluations.items()
                if number != before.get(name, 0)
            }
            self.progress.keep(stage, key, kept)
        else:
            self.stages[stage] = self.stages.get(stage, 0.0) + kept["seconds"]
            for name, number in kept["evaluations"].items():
                self.count(name, number)
        return kept["value"]

    def count(self, stage: str, evaluations: int) -> None:
        """Add evaluations to a stage."""
        self.evaluations[stage] = self.evaluations.get(stage, 0) + evaluations

    def to_dict(self) -> dict[str, object]:
        """JSON-able form: seconds in milliseconds' precision, evaluations in all and by stage."""
        return {
            "stages": {name: round(seconds, 3) for name, seconds in self.stages.items()},
            "evaluations": sum(self.evaluations.values()),
            "evaluations_by_stage": dict(self.evaluations),
        }


@dataclass(frozen=True)
class PlanProvenance:
    """Where a plan comes from; `Method.plan` writes all of it but the details."""

    method: str | None = None
    """Name of the method; None for a plan that no method made."""
    sparsity: float | None = None
    """Block sparsity that the method was asked for."""
    search: SearchCost = field(default_factory=SearchCost)
    """Seconds and evaluations of every stage."""
    details: Mapping[str, object] = field(default_factory=dict)
    """JSON-able facts that the method adds: the sparsities of projections and blocks, exponents, ..."""

    def to_dict(self) -> dict[str, object]:
        """All facts side by side, as plans on disk and records hold them."""
        facts = {**self.details, **self.search.to_dict(), "method": self.method, "sparsity": self.sparsity}
        return {name: fact for name, fact in facts.items() if fact is not None}

    @classmethod
    def from_dict(cls, facts: Mapping[str, object]) -> PlanProvenance:
        """Inverse of `to_dict`; what an older plan does not say has its default."""
        details = dict(facts)
        details.pop("evaluations", None)  # the sum of those by stage
        search = SearchCost(details.pop("stages", {}), details.pop("evaluations_by_stage", {}))
        return cls(details.pop("method", None), details.pop("sparsity", None), search, details)
