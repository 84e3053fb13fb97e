"""Sparse and quantised weights against the bytes a token reads: what to use at which budget.

python -m wisparse.repro.tables quantised --records outputs/quantised --output results/quantised
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from ...measured.cells import MeasuredCell, tasks_of
from ...measured.comparison import Comparison, Pair
from ...measured.paired_bootstrap import RESAMPLES, Interval
from ...measured.quantised_cells import OWN, AtBytes, QuantisedData, read_quantised
from ...measured.seeds import SeedMeans
from ..table import MEGABYTES, PERCENT, PERCENT_1, Column, Table, number, task_column
from ..text import headed, interval_text, introduced, settings_lines, table_row
from .quantised_figure import quantised_figure

BUDGETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15)
"""Bytes a token as shares of those of the dense model in its own weights."""
UNREACHED = "–"


@dataclass(frozen=True)
class QuantisedEntry(SeedMeans):
    """A format, method and sparsity on a model: the mean over the seeds that were measured."""

    data: QuantisedData
    quantisation: str
    method: str
    sparsity: float

    @cached_property
    def cells(self) -> list[MeasuredCell]:
        """Cells, one a seed."""
        return list(self.data.seeds(self.model, self.quantisation, self.method, self.sparsity).values())

    @property
    def comparison(self) -> Comparison:
        """Paired comparisons of the model's cells."""
        return self.data.comparison(self.model)

    def ratio(self, quantisation: str) -> Interval | None:
        """Perplexity over that of the dense model in a format; None for that model itself."""
        return self.perplexity_ratio(self._beside(quantisation))

    @property
    def average_difference(self) -> Interval | None:
        """Average minus that of the dense model in its own weights, in points."""
        return self.average_minus(self._beside(OWN))

    def _beside(self, quantisation: str) -> list[Pair]:
        """Cells, each with the dense one of a format and its seed; nothing for that one itself."""
        if (self.method, self.quantisation) == ("dense", quantisation):
            return []
        denses = [self.data.dense(self.model, quantisation, cell.record["seed"]) for cell in self.cells]
        return [(cell, dense) for cell, dense in zip(self.cells, denses, strict=True) if dense is not None]


def entries(data: QuantisedData) -> Iterator[QuantisedEntry]:
    """Rows in the order of the table."""
    for model, quantisation, method, sparsity in dict.fromkeys(place[:4] for place in data.cells):
        yield QuantisedEntry(model, data, quantisation, method, sparsity)


def columns(tasks: Sequence[str]) -> list[Column[QuantisedEntry]]:
    """Columns in the order of the CSV."""
    return [
        Column("model", "Model", lambda entry: entry.model),
        Column("quantisation", "Weights", lambda entry: entry.quantisation),
        Column("method", "Method", lambda entry: entry.method),
        Column("sparsity", "Sparsity", lambda entry: entry.sparsity, form=PERCENT),
        Column("seeds", "Seeds", lambda entry: len(entry.cells)),
        Column("realised_sparsity", "Realised", lambda entry: entry.mean("realised", "realised_sparsity"), 5,
               PERCENT_1),
        Column("bytes_per_token", "MB/token", lambda entry: entry.mean("realised", "bytes_per_token"), 0,
               MEGABYTES),
        Column("perplexity", "Perplexity", lambda entry: entry.mean("perplexity"), 4, number(3)),
        Column("perplexity_ratio", "÷ dense", lambda entry: entry.ratio(OWN), 4, number(3), bounds=True),
        Column("ratio_in_format", "÷ dense in its format",
               lambda entry: entry.ratio(entry.quantisation), 4, number(3), bounds=True),
        Column("average", "Average", lambda entry: entry.mean("average"), 3, number(2)),
        Column("average_minus_dense", "Average − dense", lambda entry: entry.average_difference, 4,
               number(2, sign="+"), bounds=True),
        *(task_column(task, lambda entry, name: entry.mean("tasks", name, "value")) for task in tasks),
    ]  # fmt: skip


HOW_READ = (
    "MB/token: what a sparsely computed token reads, with scales, zero points and the head. `none`: the "
    "model's own weights in the dtype below.",
    "÷ dense: perplexity over that of the dense model in its own weights; ÷ dense in its format: over that of "
    "the dense model with the same quantised weights, which says what sparsity costs there. Means over the "
    "seeds.",
    f"Brackets: 95 % intervals from {RESAMPLES:,} resamples of the mean over the seeds, paired by document.",
    "At a budget: between a method's two cells nearest to those bytes, the dense model of the format among "
    "them, log-perplexity is linear in the bytes. Nothing is extrapolated. Where the dense model of a format "
    f"reads no more, it stands there itself. {UNREACHED}: no cells of the format around those bytes.",
)


def above(data: QuantisedData) -> str:
    """Settings, and a table for each model of the best in each format at every budget."""
    records = data.cells.values()
    sparse = [cell for place, cell in data.cells.items() if place.method != "dense"]
    head = headed("# Sparse and quantised: what to use at which budget", records)
    lines = [*HOW_READ, *settings_lines(sparse or records)]
    parts = [introduced(head, lines)]
    for model in data.models:
        parts += [f"## {model}: perplexity ÷ dense at equal bytes a token", budget_table(data, model)]
    return "\n\n".join([*parts, "## Every cell"])


def budget_table(data: QuantisedData, model: str, budgets: Iterable[float] = BUDGETS) -> str:
    """Rows: bytes a token; columns: formats, each with its best method there; the best of all is bold."""
    own, formats = data.dense(model, OWN), data.formats(model)
    whole = own.record["realised"]["bytes_per_token"]
    lines = [
        table_row(["Bytes ÷ dense", "MB/token", *formats]),
        table_row(["---:", "---:"] + ["---"] * len(formats)),
    ]
    for share in budgets:
        found = [data.best_within(model, name, share * whole) for name in formats]
        best = min((one.ratio.value for one in found if one), default=None)
        if best is None:
            continue
        shown = (UNREACHED if one is None else _shown(one, one.ratio.value == best) for one in found)
        lines.append(table_row([f"{share:.0%}", f"{share * whole / 1e6:.2f}", *shown]))
    return "\n".join(lines)


def _shown(found: AtBytes, best: bool) -> str:
    what = "dense" if found.method == "dense" else f"{found.method} {found.sparsity:.0%}"
    text = f"{interval_text(found.ratio, '{:.3f}')} {what}"
    return f"**{text}**" if best else text


QUANTISED = Table(
    name="quantised",
    title="Sparse and quantised: what to use at which budget",
    command="python repro/run.py experiment=quantised",
    read=read_quantised,
    entries=entries,
    columns=columns,
    tasks=lambda data: tasks_of(data.cells.values()),
    above=above,
    figure=quantised_figure,
)
