"""Which key-value groups of each row attention looks at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import KernelError
from ...model.static_cache import StaticCache
from ..launch import check_tensor


@dataclass(frozen=True)
class Selection:
    """The groups of the highest scores, so many in every row; of equal scores the first."""

    scores: Tensor
    """(batch, kv_heads) float32, which a launch before fills."""
    kept: int

    def check(self, cache: StaticCache) -> None:
        """Raises KernelError unless it fits the rows and groups of a cache."""
        groups = cache.keys.shape[2]
        if not 1 <= self.kept <= groups:
            raise KernelError(f"{self.kept} of {groups} key-value groups cannot be looked at")
        check_tensor("scores of groups", self.scores, (cache.batch, groups), torch.float32)


def kept_groups(selection: Selection | None, cache: StaticCache) -> tuple[Tensor | None, int]:
    """Scores and number of groups, as kernels take them. Raises KernelError for what does not fit the cache."""
    if selection is None:
        return None, cache.keys.shape[2]
    selection.check(cache)
    return selection.scores, selection.kept
