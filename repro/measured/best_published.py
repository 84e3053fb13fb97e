"""Cells of own methods against the published method that loses least at the very bytes that they read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .cells import is_trained
from .comparison import Between, at_equal_bytes, bytes_of
from .paired_bootstrap import Interval
from .real_cells import RealData, Section
from .rise import Rises, mean_of

OURS = ("equal_loss", "equal_error", "teal_folded")
"""Beginnings of the names of this project's methods and controls; SPON, trained as some are, is published."""


@dataclass(frozen=True)
class AgainstPublished:
    """An own method at a sparsity against one published method, at the bytes that the own one reads."""

    published: str
    seeds: tuple[int, ...]
    """Seeds that can be compared."""
    rise_share: Interval
    """Rise of perplexity over dense as a share of the published method's, mean over the seeds."""
    average_difference: Interval | None
    """Mean accuracy minus the published method's in points; None without tasks."""


def against_best(
    data: RealData, section: Section, method: str, sparsity: float, among: Iterable[str]
) -> AgainstPublished | None:
    """The comparison in which the method's share is the largest: with the one of `among` that loses least.

    among: methods of the same section. One whose cells of a seed do not enclose the bytes is not compared for
    it. None where none can be.
    """
    found = [_against(data, section, method, sparsity, name) for name in among]
    return max((one for one in found if one), key=lambda one: one.rise_share.value, default=None)


def published(data: RealData, section: Section) -> list[str]:
    """Methods of a section that others have published, readings and variants too, in the order of the table."""
    methods = dict.fromkeys(name for _, name, *_ in data.cells_of(section))
    return [name for name in methods if name != "dense" and not name.startswith(OURS)]


def published_trained(data: RealData, section: Section) -> list[str]:
    """Published methods of a section whose plans were trained: SPON."""
    trained = {name for (_, name, *_), cell in data.cells_of(section).items() if is_trained(cell)}
    return [name for name in published(data, section) if name in trained]


def _against(
    data: RealData, section: Section, method: str, sparsity: float, name: str
) -> AgainstPublished | None:
    dense, pairs = data.dense(section), {}
    for (_, own, at, seed), cell in data.cells_of(section).items():
        curve = data.curve(section, name, seed)
        if (own, at) == (method, sparsity) and curve:
            between = at_equal_bytes(curve, bytes_of(cell))
            if isinstance(between, Between):
                pairs[seed] = cell, between
    if dense is None or not pairs:
        return None
    comparison = data.comparison(section)
    rises = Rises(comparison, dense)
    if any(rises.at(theirs)[0] <= 0 for _, theirs in pairs.values()):
        return None
    return AgainstPublished(
        name,
        tuple(pairs),
        mean_of([rises.share(mine, theirs) for mine, theirs in pairs.values()]),
        comparison.average_difference(list(pairs.values())),
    )
