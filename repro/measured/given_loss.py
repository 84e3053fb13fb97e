"""Sparsity and bytes at which a method has lost so much: PPL-p % (Sparsing Law, arXiv 2411.02335).

The sparse cells of a method and a seed are a curve of perplexity against bytes. Where it crosses the dense
perplexity times 1 + p is found between the two cells around the crossing, the logarithm of the rise being
linear in the bytes, as in every other comparison here. The paper bisects one global setting instead.

A model that was trained to run under a method (LTE, Q-Sparse) is no reference without it: what it loses is what
it loses to the control, a dense model that was trained on as many tokens of the same text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from ..record_facts import is_pruned
from ..train.recipes import CONTINUATIONS, START
from .cells import MeasuredCell, method_rank
from .comparable import check_same_items, without_seed
from .comparison import Numbers, bytes_of
from .head_cells import key_values_left_out
from .paired_bootstrap import Interval, interval
from .real_cells import RealData, Section
from .rise import Rises, exact_perplexity

CONTROL = f"{START}-dense"
"""The model that those trained to run under a method are compared with."""
OF_ROUTERS, OF_ZEROS = ("lte",), ("relu_zeros", "sparseinfer")
"""Methods of models that were trained with routers, and how those of models with a ReLU begin."""
LOSSES = (0.01, 0.05, 0.1)
"""Rises of perplexity, as shares of the dense model's: PPL-1 %, PPL-5 %, PPL-10 %."""
MEASURED, EARLIER, NOT_REACHED = "measured", "before the first cell", "not reached"
"""Whether a loss lies between the cells of every seed; before those of some; or beyond those of some."""
LACKING = "not measured"
"""Status of a method that other sections have."""


@dataclass(frozen=True)
class AtLoss:
    """A method where its perplexity has risen by a share of the dense model's: the mean over its seeds."""

    section: Section
    reference: str
    """Model whose dense perplexity it is a rise of; empty where it was not measured."""
    method: str
    loss: float
    seeds: tuple[int, ...]
    """Seeds with the same sparsities, as many as any seed has."""
    cells: int
    """Sparse cells of a curve."""
    status: str
    """One of MEASURED, EARLIER, NOT_REACHED and LACKING."""
    sparsity: Interval | None
    """Net sparsity; bounds end where the cells do. None where it is not measured: nothing is extrapolated."""
    bytes_per_token: Interval | None
    ends: tuple[float, float] | None
    """Net sparsity of the first and of the last cell; None without cells."""


def net_sparsity(cell: MeasuredCell) -> float:
    """Share of the block weights that a sparse token saves: not read, less what is read besides.

    Of attention over chosen groups the share of keys and values; of pruned weights that of their bytes, less
    those that say which are kept.
    """
    if cell.record.get("heads"):
        return key_values_left_out(cell.record)
    if is_pruned(cell.record):
        whole = torch.finfo(getattr(torch, cell.record["model"]["dtype"])).bits
        return 1.0 - float(cell.record["quantisation"]["bits_per_weight"]) / whole
    realised = cell.record["realised"]
    besides = ("low_rank_share", "rotation_share", "proxy_share", "neuron_router_share")
    return float(realised["realised_sparsity"]) - sum(realised.get(part, 0.0) for part in besides)


def losses(data: RealData) -> list[AtLoss]:
    """Every method of every section with perplexities at every loss, in the order of the cells.

    Methods of other models follow as not measured, where this one can run them, at the first section of a suite
    and protocol. Raises UserError where the control was measured on other items.
    """
    everywhere = sorted({method for _, method, *_ in data.cells if method != "dense"}, key=method_rank)
    references = {
        section: data.dense(section._replace(model=reference_of(section))) for section in data.sections
    }
    measured: dict[tuple[str, ...], set[str]] = {}
    for section, dense in references.items():
        if dense is not None:
            measured.setdefault(section[:3], set()).update(name for _, name, *_ in data.cells_of(section))
    found = []
    for section, dense in references.items():
        if dense is not None:
            check_same_items(map(without_seed, (dense, *data.cells_of(section).values())))
            rises = Rises(data.comparison(section), dense)
            methods = dict.fromkeys(name for _, name, *_ in data.cells_of(section) if name != "dense")
            found += [_at_loss(data, section, rises, name, loss) for name in methods for loss in LOSSES]
        here = measured.get(section[:3], set())
        found += _lacking(section, [name for name in everywhere if name not in here])
        measured[section[:3]] = set(everywhere)
    return found


def reference_of(section: Section) -> str:
    """Name of the model whose dense perplexity a section's methods rise from: its own, or the control."""
    how = CONTINUATIONS.get(section.model.removeprefix(f"{START}-"))
    return CONTROL if how is not None and (how.routers or how.kept) else section.model


def _lacking(section: Section, methods: Collection[str]) -> Iterator[AtLoss]:
    how = CONTINUATIONS.get(section.model.removeprefix(f"{START}-"), CONTINUATIONS["dense"])
    for method in methods:
        routed, of_zeros = method in OF_ROUTERS, method.startswith(OF_ZEROS)
        if (routed and not how.routers) or (of_zeros and how.activation != "relu"):
            continue
        for loss in LOSSES:
            yield AtLoss(section, "", method, loss, (), 0, LACKING, None, None, None)


def _at_loss(data: RealData, section: Section, rises: Rises, method: str, loss: float) -> AtLoss:
    sparsities: dict[int, set[float]] = {}
    for _, name, sparsity, seed in data.cells_of(section):
        if name == method:
            sparsities.setdefault(seed, set()).add(sparsity)
    most = max((sparsities[seed] for seed in sorted(sparsities)), key=len)  # of several, the first seed's
    whole = {seed: data.curve(section, method, seed) for seed in sorted(sparsities) if sparsities[seed] == most}
    curves = [sorted(curve, key=bytes_of, reverse=True) for curve in whole.values()]
    positions = [_position(rises, curve, loss) for curve in curves]
    status = next((reason for reason, _ in positions if reason != MEASURED), MEASURED)
    places = list(zip(curves, (position for _, position in positions), strict=True))

    def mean(of: list[Numbers]) -> Interval | None:
        if status != MEASURED:
            return None
        means = np.mean(of, axis=0)
        return interval(float(means[0]), means[1:])

    nets = [[net_sparsity(cell) for cell in curve] for curve in curves]
    return AtLoss(
        section, rises.dense.record["model"]["name"], method, loss, tuple(whole), len(most), status,
        sparsity=mean([_at(place, net) for (_, place), net in zip(places, nets, strict=True)]),
        bytes_per_token=mean([_at(place, list(map(bytes_of, curve))) for curve, place in places]),
        ends=(float(np.mean([net[0] for net in nets])), float(np.mean([net[-1] for net in nets]))),
    )  # fmt: skip


def _at(position: Numbers, values: Sequence[float]) -> Numbers:
    return np.interp(position, np.arange(len(values)), values)


def _position(rises: Rises, curve: Sequence[MeasuredCell], loss: float) -> tuple[str, Numbers]:
    """Whether a curve crosses the loss, and where: as measured first, then in every resample."""
    found = np.array([np.append(*rises.at(cell)) for cell in curve])
    of_dense = np.exp(rises.comparison.log_perplexities(rises.dense))
    wanted = loss * np.append(exact_perplexity(rises.dense), of_dense)
    outside = EARLIER if found[0, 0] > wanted[0] else NOT_REACHED if found[:, 0].max() < wanted[0] else MEASURED
    return outside, crossing(found, wanted)


def crossing(rises: Numbers, wanted: Numbers) -> Numbers:
    """Where each curve first reaches a rise, in cells: 1.5 is halfway from the second to the third.

    rises: (cells, curves); wanted: (curves,), above 0. Between two cells the logarithm of the rise is linear,
    or the rise itself where the lower is not above 0. A curve that starts above is at 0, one that stays below
    at its end.
    """
    found = np.full(len(wanted), len(rises) - 1.0)
    going_on = rises[0] < wanted
    found[~going_on] = 0.0
    for index, (below, above) in enumerate(pairwise(rises)):
        here = going_on & (above >= wanted)
        positive = here & (below > 0)
        for chosen, scale in ((positive, np.log), (here & ~positive, np.asarray)):
            low, high, between = (scale(part[chosen]) for part in (below, above, wanted))
            found[chosen] = index + (between - low) / (high - low)
        going_on &= ~here
    return found
