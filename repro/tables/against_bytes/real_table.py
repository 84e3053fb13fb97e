"""Methods on a real model: several suites, protocols, search budgets and seeds, compared at equal bytes.

A row of the CSV is a cell. A row of the page is the mean over the seeds, compared with the reference method at
the very bytes that the row's own cells read.

python -m wisparse.repro.tables real --records outputs/table1_real --output results/real/table1
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ...measured.comparison import Comparison
from ...measured.paired_bootstrap import RESAMPLES
from ...measured.real_cells import RealData, Section, read_readings, read_real
from ..accuracy import AVERAGE, BYTES, PERPLEXITY, REALISED
from ..table import PERCENT, Column, Table, entries_as_rows, markdown_table, number, task_column
from ..text import settings_lines
from .real_rows import INCOMPARABLE, RealEntry, entries, rows


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
