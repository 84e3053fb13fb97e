"""Sparsity at a given loss, beside the tables of loss at a given sparsity: PPL-p % of every method.

python -m wisparse.repro.tables given_loss --records results/real/records/table1.tar.xz \
    --output results/real/given_loss
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...measured.deciding import has_own_weights
from ...measured.given_loss import EARLIER, LACKING, LOSSES, MEASURED, AtLoss, losses
from ...measured.paired_bootstrap import RESAMPLES
from ...measured.pruned_cells import pruned_lines
from ...measured.real_cells import RealData, Section, read_given_loss
from ...train.recipes import CONTINUATIONS, START
from ..table import MEGABYTES, PERCENT_1, Column, Table, Value, entries_as_rows, markdown_table
from ..text import headed, introduced
from .real_table import section_head

ABOVE = (
    "Net sparsity, and bytes a token, at which perplexity has risen by 1, 5 and 10 % of the dense model's: "
    "PPL-p % of the Sparsing Law (arXiv 2411.02335). Net: block weights not read, less what rotations "
    "and low-rank paths read.",
    "`polar`: attention over chosen key-value groups; its sparsity is the share of keys and values left "
    "out. `pruned_NAME`: weights pruned instead; their sparsity is the share of their bytes that goes, less "
    "those that say which are kept.",
    "Between the two cells around that rise its logarithm is linear in the bytes; nothing is extrapolated. "
    "`<`: the first sparse cell, whose sparsity follows, has lost more already. *not reached*: even the last "
    "cell, whose sparsity follows, has lost less.",
    f"Brackets: 95 % bootstrap intervals from {RESAMPLES:,} resamples of the documents, of the mean over the "
    "seeds that have all of a method's sparsities; they end where the cells do.",
)


def columns(_: Sequence[str]) -> list[Column[AtLoss]]:
    """Columns in the order of the CSV."""
    return [
        Column("model", "Model", lambda found: found.section.model),
        Column("suite", "Suite", lambda found: found.section.suite),
        Column("protocol", "Protocol", lambda found: found.section.protocol),
        Column("search_budget", "Budget", lambda found: found.section.budget),
        Column("calibration", "Calibration", lambda found: found.section.text),
        Column("reference", "Reference", lambda found: found.reference),
        Column("method", "Method", lambda found: found.method),
        Column("loss", "Loss", lambda found: found.loss),
        Column("sparsity", "Sparsity", lambda found: found.sparsity, 4, PERCENT_1, bounds=True,
               absent="status"),
        Column("bytes_per_token", "MB/token", lambda found: found.bytes_per_token, 0, MEGABYTES, bounds=True),
        Column("seeds", "Seeds", lambda found: ", ".join(map(str, found.seeds))),
        Column("cells", "Sparse cells", lambda found: found.cells),
        Column("first_cell_sparsity", "", lambda found: found.ends and found.ends[0], 4),
        Column("last_cell_sparsity", "", lambda found: found.ends and found.ends[1], 4),
        Column("status", "", lambda found: found.status),
    ]  # fmt: skip


Row = tuple[AtLoss, ...]
"""A method at every loss."""


def _shown() -> list[Column[Row]]:
    """Columns of the page: a method a row, its sparsities, then its bytes."""
    made = {column.name: column for column in columns(())}

    def at(index: int, name: str, title: str) -> Column[Row]:
        of = made[name]

        def value(row: Row) -> Value:
            found = row[index]
            if found.status == MEASURED:
                return of.shown(of.fields(found))
            if name != "sparsity":
                return None
            first, last = (PERCENT_1(str(end)) for end in found.ends)
            return f"< {first}" if found.status == EARLIER else f"*not reached* at {last}"

        return Column(f"{name}_{index}", title, value)

    def all_losses(name: str, title: str) -> Iterator[Column[Row]]:
        return (at(index, name, f"{title} at +{loss:.0%}") for index, loss in enumerate(LOSSES))

    return [
        Column("method", "Method", lambda row: row[0].method),
        *all_losses("sparsity", "Sparsity"),
        *all_losses("bytes_per_token", "MB/token"),
        *(
            Column(name, made[name].title, lambda row, of=made[name]: of.value(row[0]))
            for name in ("seeds", "cells")
        ),
    ]


def _sections(data: RealData) -> Iterator[str]:
    by_section: dict[Section, dict[str, list[AtLoss]]] = {}
    for found in losses(data):
        by_section.setdefault(found.section, {}).setdefault(found.method, []).append(found)
    texts: dict[tuple[str, ...], set[str]] = {}
    for section in by_section:
        texts.setdefault(section[:-1], set()).add(section.text)
    for section, methods in by_section.items():
        head, settings = section_head(_as_they_are(data, section), section)
        yield head if len(texts[section[:-1]]) == 1 else f"{head}, calibration {section.text}"
        yield "\n".join([settings, *_of_section(data, section, methods)])
        rows: list[Row] = [tuple(row) for row in methods.values() if row[0].status != LACKING]
        if rows:
            yield markdown_table(_shown(), list(entries_as_rows(_shown(), rows)))


def _as_they_are(data: RealData, section: Section) -> RealData:
    """A section's cells with the model's own weights, where any is sparse: pruned ones have a line below."""
    own = {
        place: cell for place, cell in data.cells.items() if place[0] != section or has_own_weights(cell.record)
    }
    kept = replace(data, cells=own)
    return kept if section in kept.sections else data


def _of_section(data: RealData, section: Section, methods: dict[str, list[AtLoss]]) -> Iterator[str]:
    """What must be known of a section's rows: another reference, how weights were pruned, what is lacking."""
    references = {row[0].reference for row in methods.values()} - {section.model, ""}
    for reference in references:
        yield (
            f"- Reference: `{reference}`, a dense model that was trained on with as many tokens of the same "
            f"text; `{section.model}` is none without what it was trained to run under."
        )
    yield from (f"- {line}" for line in pruned_lines(cell.record for cell in data.cells_of(section).values()))
    if lacking := [f"`{name}`" for name, row in methods.items() if row[0].status == LACKING]:
        yield f"- Not measured: {', '.join(lacking)}."


def _models_lacking(data: RealData) -> Iterator[str]:
    """Models that were trained on and have no sparse cells, where the page has others of them."""
    trained = [f"{START}-{name}" for name in CONTINUATIONS]
    measured = {section.model for section in data.sections}
    if measured & set(trained) and (lacking := [f"`{name}`" for name in trained if name not in measured]):
        yield f"Not measured under any method: {', '.join(lacking)}."


def page(data: RealData) -> str:
    """The whole page: how it is read, and a part for each model, suite, protocol and search budget."""
    head = headed("# Sparsity at a given loss", data.cells.values())
    return "\n\n".join([introduced(head, (*ABOVE, *_models_lacking(data))), *_sections(data)]) + "\n"


GIVEN_LOSS = Table(
    name="given_loss",
    title="Sparsity at a given loss",
    command="make given-loss",
    read=read_given_loss,
    entries=losses,
    columns=columns,
    above=lambda data: "",
    page=page,
)
