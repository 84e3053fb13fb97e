"""Methods on a real model: several suites, protocols, search budgets and seeds, compared at equal bytes.

A row of the CSV is a cell. A row of the page is the mean over the seeds, compared with the reference method at
the very bytes that the row's own cells read.

python -m wisparse.repro.tables real --records outputs/table1_real --output results/real/table1
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..measured.cells import MeasuredCell, mean_of_records, method_rank
from ..measured.comparison import Between, Comparison, at_equal_bytes, bytes_of
from ..measured.frontier import search_seconds
from ..measured.paired_bootstrap import RESAMPLES, Interval
from ..measured.real_cells import RealData, Section, read_readings, read_real
from ..measured.rise import Rises, mean_of
from .accuracy import AVERAGE, BYTES, PERPLEXITY, REALISED
from .table import PERCENT, Column, Table, entries_as_rows, markdown_table, number, task_column
from .text import MEASURED, settings_lines, unmeasured_text

INCOMPARABLE = "not comparable at equal bytes"


@dataclass(frozen=True)
class RealEntry:
    """A method at a sparsity: the mean over those of some seeds that were measured."""

    data: RealData
    section: Section
    method: str
    sparsity: float
    seeds: tuple[int, ...]

    @cached_property
    def cells(self) -> dict[int, MeasuredCell]:
        """Cells by seed; the dense one, which all seeds share, by its own."""
        if self.method == "dense":
            dense = self.data.dense(self.section)
            return {} if dense is None else {dense.record["seed"]: dense}
        places = {seed: (self.section, self.method, self.sparsity, seed) for seed in self.seeds}
        return {seed: self.data.cells[place] for seed, place in places.items() if place in self.data.cells}

    @property
    def seeds_text(self) -> str:
        """Seeds that were measured."""
        return ", ".join(map(str, self.cells))

    @property
    def status(self) -> str:
        """Whether it was measured, and if not, whether it can be."""
        if self.cells:
            return MEASURED
        return unmeasured_text(self.data.unreachable.get((self.section.model, self.method, self.sparsity)))

    def of_record(self, *path: str) -> float | None:
        """The mean of a number of the records by its place there; None where it is in none."""
        return mean_of_records(self.cells.values(), *path)

    @property
    def trained(self) -> bool:
        """Whether anything of its plan was trained."""
        return any(map(is_trained, self.cells.values()))

    @property
    def plan_seconds(self) -> float | None:
        """Seconds of everything that making the plan took, mean over the seeds."""
        found = [search_seconds(cell.record) for cell in self.cells.values()]
        return float(np.mean(found)) if found else None

    @property
    def kept(self) -> float | None:
        """Average as a percentage of the dense average."""
        average, dense = self.of_record("average"), self.data.dense(self.section)
        if average is None or dense is None or not dense.record["average"]:
            return None
        return 100 * average / dense.record["average"]

    def against_dense(self, compare: Callable[[Comparison, list[Any]], Interval | None]) -> Interval | None:
        """What `compare` says of the cells beside the dense one; None without either."""
        dense = self.data.dense(self.section)
        if not self.cells or dense is None or self.method == "dense":
            return None
        return compare(self.data.comparison(self.section), [(cell, dense) for cell in self.cells.values()])

    @cached_property
    def compared(self) -> list[tuple[MeasuredCell, Between]]:
        """Cells, each with the reference at the bytes that it reads, under the same seed; nothing beyond it."""
        if self.method in ("dense", self.data.reference):
            return []
        curves = ((cell, self.data.curve(self.section, self.data.reference, seed))
                  for seed, cell in self.cells.items())  # fmt: skip
        found = ((cell, at_equal_bytes(curve, bytes_of(cell))) for cell, curve in curves if curve)
        return [(cell, point) for cell, point in found if isinstance(point, Between)]

    @property
    def rise_share(self) -> Interval | None:
        """Rise of perplexity over dense as a share of the reference's, paired by document.

        None where the reference loses nothing.
        """
        dense = self.data.dense(self.section)
        if not self.compared or dense is None or dense.record["perplexity"] is None:
            return None
        rises = Rises(self.data.comparison(self.section), dense)
        if any(rises.at(theirs)[0] <= 0 for _, theirs in self.compared):
            return None
        return mean_of([rises.share(mine, theirs) for mine, theirs in self.compared])

    @property
    def minus_reference(self) -> Interval | None:
        """Average minus the reference's in points, paired by item."""
        if not self.compared:
            return None
        return self.data.comparison(self.section).average_difference(self.compared)

    @property
    def comparison_text(self) -> str:
        """Seeds that are compared at equal bytes, or that none is; empty where nothing is to be compared."""
        if not self.cells or self.method in ("dense", self.data.reference):
            return ""
        if not self.compared:
            return INCOMPARABLE
        return f"{len(self.compared)} of {len(self.cells)}"


def is_trained(cell: MeasuredCell) -> bool:
    """Whether anything of a cell's plan was trained."""
    return "training" in cell.record["plan"]["seconds_by_stage"]


def rows(data: RealData, section: Section) -> Iterator[RealEntry]:
    """Rows of a section: the dense one, then every method at every sparsity, over all seeds.

    Where the reference alone was measured, to compare others at the bytes they read, no others are listed. A
    method that was measured at less than half of the section's sparsities is listed there, and where it is out
    of reach.
    """
    places = [place for place in data.cells_of(section) if place[1] != "dense"]
    lost = [place for place in data.unreachable if place[0] == section.model]
    found = {(method, sparsity) for _, method, sparsity, _ in places}
    sparsities = sorted({sparsity for _, sparsity in found})
    often = Counter(method for method, _ in found)
    methods = {method for method, count in often.items() if 2 * count >= len(sparsities)}
    seeds = tuple(sorted({seed for *_, seed in places}))
    yield RealEntry(data, section, "dense", 0.0, seeds)
    for sparsity in sparsities:
        here = {method for method, of in found if of == sparsity}
        alone = here == {data.reference}
        named = methods | here | {name for _, name, of in lost if of == sparsity}
        for method in [data.reference] if alone else sorted(named, key=method_rank):
            yield RealEntry(data, section, method, sparsity, seeds)


def entries(data: RealData) -> Iterator[RealEntry]:
    """Rows of the CSV: those of every section, a seed each."""
    for section in data.sections:
        for entry in rows(data, section):
            seeds = tuple(entry.cells)[:1] if entry.method == "dense" else entry.seeds
            yield from (replace(entry, seeds=(seed,)) for seed in seeds)


def columns(tasks: Sequence[str]) -> list[Column[RealEntry]]:
    """Columns in the order of the CSV."""
    return [
        Column("model", "Model", lambda entry: entry.section.model),
        Column("suite", "Suite", lambda entry: entry.section.suite),
        Column("protocol", "Protocol", lambda entry: entry.section.protocol),
        Column("search_budget", "Budget", lambda entry: entry.section.budget),
        *_measured(Column("seed", "Seed", lambda entry: entry.seeds[0]), tasks),
        Column("bits_per_byte", "", lambda entry: entry.of_record("bits_per_byte"), 5),
        Column("average_minus_dense", "Average − dense",
               lambda entry: entry.against_dense(Comparison.average_difference), 4, number(2, sign="+"),
               bounds=True),
        Column("perplexity_ratio", "Perplexity ÷ dense",
               lambda entry: entry.against_dense(Comparison.perplexity_ratio), 4, number(3), bounds=True),
        *_compared("the reference's"),
        Column("reference", "", lambda entry: entry.data.reference),
        Column("compared", "", lambda entry: entry.comparison_text),
        Column("dense_bytes_per_token", "", lambda entry: entry.of_record("realised", "dense_bytes_per_token"),
               0),
        Column("status", "", lambda entry: entry.status),
    ]  # fmt: skip


def _measured(seeds: Column[RealEntry], tasks: Sequence[str]) -> list[Column[Any]]:
    return [
        Column("method", "Method", lambda entry: entry.method),
        Column("sparsity", "Sparsity", lambda entry: entry.sparsity, form=PERCENT),
        seeds,
        REALISED,
        BYTES,
        replace(PERPLEXITY, absent="status"),
        AVERAGE,
        Column("kept", "Kept %", lambda entry: entry.kept, 3, number(1)),
        *(task_column(task, lambda entry, name: entry.of_record("tasks", name, "value")) for task in tasks),
    ]


def _compared(whose: str) -> list[Column[RealEntry]]:
    return [
        Column("rise_share", f"Rise ÷ {whose}", lambda entry: entry.rise_share, 4, number(2), bounds=True,
               absent="compared", beside="part"),
        Column("average_minus_reference", f"Average − {whose}", lambda entry: entry.minus_reference, 4,
               number(2, sign="+"), bounds=True, absent="compared", beside="part"),
    ]  # fmt: skip


HOW_READ = (
    "Means over the seeds (of the calibration text and of the searches). Realised: block weights not read, "
    "weighted by bytes, over the sparsely computed tokens. MB/token: weights read for such a token, lm_head "
    "and low-rank factors included. Bold: best of its sparsity.",
    "Rise: perplexity minus that of the dense model. `{reference}` is taken at the very bytes that each cell "
    "reads, between its own two cells nearest to them, of the same seed: the logarithm of its rise and the "
    "outcome of every item are linear in the bytes. Beyond its cells nothing is extrapolated: "
    f"*{INCOMPARABLE}*; *1 of 3*: of one of the row's three seeds alone.",
    f"Brackets: 95 % bootstrap intervals from {RESAMPLES:,} resamples of the mean over the seeds, paired by "
    "document (rise) and by item (average).",
)


HOW_VARIED = (
    "`wisparse_NAME` is WiSparse under `reading=NAME`, a file of [conf/reading](../../conf/reading) that says "
    "what differs; some search on other tokens or another amount of text than the line on calibration says."
)


def page(data: RealData, title: str = "Table 1 on a real model", more: Sequence[str] = ()) -> str:
    """The whole page: how it is read, and a part for each suite, protocol and search budget."""
    models = ", ".join(dict.fromkeys(section.model for section in data.sections))
    lines = [f"- {line.format(reference=data.reference)}" for line in (*HOW_READ, *more)]
    parts = [f"# {title}: {models}", "\n".join(lines)]
    for section in data.sections:
        parts += _part(data, section)
    return "\n\n".join(parts) + "\n"


def section_head(data: RealData, section: Section) -> Iterator[str]:
    """Title and settings of the part of a page that is about a section's sparse cells."""
    cells = [cell for (_, method, *_), cell in data.cells_of(section).items() if method != "dense"]
    of_model = f"{section.model}: " if len({one.model for one in data.sections}) > 1 else ""
    yield f"## {of_model}{section.suite}, protocol {section.protocol}, search {section.budget}"
    yield "\n".join(f"- {line}" for line in settings_lines(cells))


def _part(data: RealData, section: Section) -> Iterator[str]:
    cells = [cell for (_, method, *_), cell in data.cells_of(section).items() if method != "dense"]
    tasks = list(cells[0].record["tasks"])
    seeds = Column("seeds", "Seeds", lambda entry: entry.seeds_text)
    declared = [*_measured(seeds, tasks), *_compared(f"{data.reference}'s")]
    hidden = [Column("status", "", lambda entry: entry.status), Column("compared", "", _reason),
              Column("part", "", _part_of_seeds),
              Column("trained", "", lambda entry: entry.trained)]  # fmt: skip
    # What is trained is compared with what is trained.
    ordered = sorted(rows(data, section), key=lambda entry: (entry.sparsity, entry.trained))
    found = list(entries_as_rows([*declared, *hidden], ordered))
    lacking = set() if tasks else {"average", "kept", "average_minus_reference"}
    lacking |= set() if cells[0].record["n_documents"] else {"perplexity", "rise_share"}
    shown = [column for column in declared if column.name not in lacking]
    yield from section_head(data, section)
    yield markdown_table(
        shown, found, lambda row: None if row["method"] == "dense" else (row["sparsity"], row["trained"])
    )


def _reason(entry: RealEntry) -> str:
    return INCOMPARABLE if entry.comparison_text == INCOMPARABLE else ""


def _part_of_seeds(entry: RealEntry) -> str:
    return entry.comparison_text if 0 < len(entry.compared) < len(entry.cells) else ""


REAL = Table(
    name="real",
    title="Table 1 on a real model",
    command="make reproduce-table1 PROFILE=real",
    read=read_real,
    entries=entries,
    columns=columns,
    tasks=lambda data: data.tasks,
    above=lambda data: "",
    page=page,
)

READINGS = replace(
    REAL,
    name="readings",
    title="Readings of WiSparse's paper on a real model",
    command="python repro/run.py experiment=readings",
    read=read_readings,
    page=lambda data: page(data, "Readings of WiSparse's paper", (HOW_VARIED,)),
)
