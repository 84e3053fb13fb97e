"""Bootstrap confidence intervals paired by item and by document: both sides see the same resamples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.float64]

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its 95 % percentile interval."""

    value: float
    low: float
    high: float


def resample_counts(n: int, resamples: int, generator: np.random.Generator) -> Counts:
    """(resamples, n): how often each of n items is drawn in each resample of size n."""
    return generator.multinomial(n, np.full(n, 1.0 / n), size=resamples).astype(np.float64)


@lru_cache(maxsize=1)  # models measured on the same items, as they come after each other, share half a gigabyte
def _drawn(
    items: tuple[tuple[str, int], ...], documents: int, resamples: int, seed: int
) -> tuple[dict[str, Counts], Counts | None]:
    """Counts by task, and of the documents where there are any."""
    generator = np.random.default_rng(seed)
    tasks = {task: resample_counts(n, resamples, generator) for task, n in items}
    return tasks, resample_counts(documents, resamples, generator) if documents else None


class PairedResamples:
    """The resamples of one model's items and documents, to be used for every method measured on them.

    `items`: number of items by task; `documents`: number of documents. The seed is fixed: the same records
    give the same intervals.
    """

    def __init__(
        self, items: Mapping[str, int], documents: int, *, resamples: int = RESAMPLES, seed: int = 0
    ) -> None:
        self._tasks, self._documents = _drawn(tuple(sorted(items.items())), documents, resamples, seed)

    def averages(self, outcomes: Mapping[str, Sequence[float]]) -> NDArray[np.float64]:
        """(resamples,) mean over tasks of the mean outcome, in percent; items are drawn within each task."""
        means = [counts @ np.asarray(outcomes[task]) / counts.shape[1] for task, counts in self._tasks.items()]
        return 100.0 * np.mean(means, axis=0)

    def log_perplexities(self, nats: Sequence[float], tokens: Sequence[float]) -> NDArray[np.float64]:
        """(resamples,) nats a token over the drawn documents."""
        if self._documents is None:
            raise ValueError("these records have no documents")
        return (self._documents @ np.asarray(nats, float)) / (self._documents @ np.asarray(tokens, float))


def interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    """The percentile interval around a point estimate."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return Interval(value, float(low), float(high))
