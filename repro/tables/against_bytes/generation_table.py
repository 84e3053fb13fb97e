"""What sparse models write: how far their text is from the dense model's by position, and their arithmetic.

python -m wisparse.repro.tables generation --records outputs/generation_real --output results/real/generation
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import Any

from ...measured.cells import MeasuredCell
from ...measured.real_cells import RealData, read_generation
from ..table import MEGABYTES, PERCENT, PERCENT_1, Column, Table, number, task_column
from ..text import headed, introduced, settings_lines
from .real_rows import RealEntry, rows

EDGES = (0, 8, 32, 64, 128)
"""Positions at which the parts of a continuation begin, over which divergence is averaged."""
CONSISTENCY = "_consistency"
"""What the name of a column on how far drawn answers agree ends with."""


@dataclass(frozen=True)
class Generated:
    """A method at a sparsity under a protocol: the mean over its seeds."""

    entry: RealEntry

    @property
    def _continuations(self) -> list[dict[str, Any]]:
        return [one for cell in self.entry.cells.values() for one in _details(cell)["continuations"]]

    @property
    def same_tokens(self) -> float:
        """Tokens before the first that differs from the dense model's, mean over the prompts."""
        return fmean(one["first_difference"] for one in self._continuations)

    @property
    def unchanged(self) -> float:
        """Share of continuations in which no token differs."""
        return fmean(one["first_difference"] == len(one["agreement"]) for one in self._continuations)

    @property
    def agreement(self) -> float:
        """Share of the dense continuations' tokens that are the sparse model's likeliest."""
        return fmean(same for one in self._continuations for same in one["agreement"])

    def divergence(self, begin: int, end: int | None) -> float | None:
        """Mean KL of the positions from begin to before end; None beyond the longest continuation."""
        found = [value for one in self._continuations for value in one["divergence"][begin:end]]
        return fmean(found) if found else None

    def consistency(self, task: str) -> float:
        """Share of the drawn answers to a question that are the most frequent one, mean over the questions."""
        return fmean(_details(cell)["agreement"][task] for cell in self.entry.cells.values())


def _details(cell: MeasuredCell) -> dict[str, Any]:
    return cell.items["details"]


def entries(data: RealData) -> Iterator[Generated]:
    """Rows of every section that were measured; of a sparsity what is trained stands last."""
    for section in data.sections:
        measured = (entry for entry in rows(data, section) if entry.cells)
        for entry in sorted(measured, key=lambda entry: (entry.sparsity, entry.trained)):
            yield Generated(entry)


def columns(tasks: Sequence[str]) -> list[Column[Generated]]:
    """Columns in the order of the CSV."""

    def of_entry(column: Column[RealEntry]) -> Column[Generated]:
        return replace(column, value=lambda generated: column.value(generated.entry))

    def part(begin: int, end: int | None) -> Column[Generated]:
        name, title = (f"{begin + 1}_{end}", f"{begin + 1}-{end}") if end else (f"{begin + 1}", f"{begin + 1}-")
        return Column(
            f"divergence_{name}", f"KL, {title}", lambda one: one.divergence(begin, end), 5, number(3)
        )

    tasks = [
        task for task in tasks if not task.endswith(CONSISTENCY)
    ]  # of a CSV whatever is not declared is one
    questions = [task for task in tasks if f"{task}_vote" in tasks]
    return [
        *map(of_entry, [
            Column("model", "Model", lambda entry: entry.section.model),
            Column("protocol", "Protocol", lambda entry: entry.section.protocol),
            Column("method", "Method", lambda entry: entry.method),
            Column("calibration", "Calibration", lambda entry: entry.section.text),
            Column("trained", "Trained", lambda entry: entry.trained),
            Column("sparsity", "Sparsity", lambda entry: entry.sparsity, form=PERCENT),
            Column("seeds", "Seeds", lambda entry: len(entry.cells)),
            Column("realised_sparsity", "Realised",
                   lambda entry: entry.of_record("realised", "realised_sparsity"), 5, PERCENT_1),
            Column("bytes_per_token", "MB/token", lambda entry: entry.of_record("realised", "bytes_per_token"),
                   0, MEGABYTES),
        ]),
        Column("same_tokens", "Same tokens", lambda one: one.same_tokens, 2, number(1)),
        Column("unchanged", "Unchanged", lambda one: one.unchanged, 4, PERCENT),
        Column("agreement", "Likeliest alike", lambda one: one.agreement, 4, PERCENT_1),
        *(part(begin, end) for begin, end in pairwise((*EDGES, None))),
        *(task_column(task, lambda one, name: one.entry.of_record("tasks", name, "value")) for task in tasks),
        *(Column(task + CONSISTENCY, f"{task}, answers alike",
                 lambda one, task=task: one.consistency(task), 4, PERCENT_1) for task in questions),
    ]  # fmt: skip


HOW_READ = (
    "Same tokens: of a greedy continuation before the first that differs from the dense model's, mean over the "
    "prompts; unchanged: continuations in which none differs.",
    "KL, 1-8 and so on: divergence of the predictions from the dense model's in nats, by the position behind "
    "the prompt, along the dense continuation, which both models read; likeliest alike: tokens of it that "
    "are the sparse model's likeliest.",
    "Tasks: exact answers in percent, greedy, and `_vote` by the most frequent of several drawn ones; answers "
    "alike: share of the drawn answers to a question that are the most frequent one, right or wrong.",
)


def above(data: RealData) -> str:
    """How the columns are read, and the settings."""
    head = headed("# What sparse models write", data.cells.values())
    lines = (*HOW_READ, *settings_lines(list(data.cells.values())))
    return introduced(head, lines)


GENERATION = Table(
    name="generation",
    title="What sparse models write",
    command="python repro/run.py experiment=generation_real",
    read=read_generation,
    entries=entries,
    columns=columns,
    tasks=lambda data: data.tasks,
    above=above,
    block=lambda row: (
        None
        if row["method"] == "dense"
        else tuple(row[name] for name in ("protocol", "calibration", "sparsity", "trained"))
    ),
)
