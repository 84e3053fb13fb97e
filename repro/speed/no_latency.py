"""The latency of runs that measure accuracy alone; apart from the other, which knows every kernel."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from ...kernels.plan.mechanism import Mechanism
    from ...method.plan import SparsityPlan


@dataclass(frozen=True)
class NoLatency:
    """Accuracy alone."""

    name: str

    def check(self, model: nn.Module, mechanisms: Collection[Mechanism], formats: Mapping[str, int]) -> None:
        """Nothing to refuse."""

    def measure(
        self,
        model: nn.Module,
        plan: SparsityPlan,
        plan_at: Callable[[float], SparsityPlan],
        keep: Callable[[dict[str, Any]], None],
    ) -> None:
        """Nothing to measure."""
