"""Perplexity and accuracy against bytes a token, every method: the frontier as a table.

python -m wisparse.repro.tables frontier --records FOLDER --output results/frontier
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ...measured.cells import MeasuredCell, method_rank
from ...measured.frontier import (
    REFERENCE,
    AtEqualBytes,
    FrontierData,
    Key,
    read_frontier,
    search_budget,
    search_seconds,
)
from ...measured.paired_bootstrap import RESAMPLES
from ...measured.pruned_cells import own_weights, pruned_lines
from ...record_facts import hardware
from ..table import (
    MEGABYTES,
    PERCENT,
    PERCENT_1,
    Column,
    Table,
    Value,
    entries_as_rows,
    markdown_table,
    number,
)
from ..text import NOT_MEASURED, commit_text, device_text, distinct, headed, introduced, model_lines

Entry = tuple[FrontierData, Key, MeasuredCell]
"""A cell with its place and the data that it is part of."""


def entries(data: FrontierData) -> Iterator[Entry]:
    """Cells in the order of the table."""
    for place, cell in data.cells.items():
        yield data, place, cell


def columns(_: Sequence[str]) -> list[Column[Entry]]:
    """Columns in the order of the CSV; averages in percent, seconds of the whole plan."""

    def of_record(find: Callable[[dict[str, Any]], Value]) -> Callable[[Entry], Value]:
        return lambda entry: find(entry[2].record)

    return [
        Column("model", "Model", lambda entry: entry[1][0]),
        Column("method", "Method", lambda entry: entry[1][1]),
        Column("sparsity", "Sparsity", lambda entry: entry[1][2], form=PERCENT),
        Column("seed", "Seed", lambda entry: entry[1][3]),
        Column("realised_sparsity", "Realised",
               of_record(lambda record: record["realised"]["realised_sparsity"]), 5, PERCENT_1),
        Column("bytes_per_token", "MB/token",
               of_record(lambda record: record["realised"]["bytes_per_token"]), 0, MEGABYTES),
        Column("perplexity", "Perplexity", of_record(lambda record: record["perplexity"]), 4, number(3)),
        Column("dense_perplexity", "Dense", _dense_perplexity, 4, number(3)),
        Column("average", "Average", of_record(lambda record: record["average"]), 3, number(2)),
        Column("search_seconds", "Seconds", of_record(search_seconds), 2, number(1)),
        Column("search_evaluations", "Evaluations",
               of_record(lambda record: record["plan"]["provenance"]["evaluations"])),
        Column("search_budget", "Budget", of_record(search_budget)),
        Column("device", "Device", of_record(lambda record: hardware(record["model"]))),
    ]  # fmt: skip


def _dense_perplexity(entry: Entry) -> float | None:
    dense = entry[0].dense(entry[1][0])
    return None if dense is None else dense.record["perplexity"]


def comparisons(data: FrontierData) -> Iterable[AtEqualBytes]:
    """Comparisons of every method with WiSparse, in the order of the table."""
    for model, sparsity, method in data.groups:
        if method == REFERENCE:
            others = {other for of_model, _, other in data.groups if of_model == model} - {"dense", REFERENCE}
            for other in sorted(others, key=method_rank):
                if found := data.comparison(model, other, sparsity):
                    yield found


def _header(data: FrontierData) -> str:
    records = [cell.record for cell in data.cells.values()]
    protocols = distinct(records, lambda record: record["protocol"]["name"])
    lines = [
        f"Protocol: {protocols}. "
        f"Device: {distinct(records, device_text)}. Commit: {distinct(records, commit_text)}.",
        "Rise: perplexity minus that of the dense model. MB/token: weights read for a sparsely computed token.",
        "At the same bytes: between a method's two cells nearest to WiSparse's bytes, of the same seed, the "
        "logarithm of the rise and the outcome of every item are taken as linear in the bytes. Nothing is "
        "extrapolated.",
        f"Brackets: 95 % intervals from {RESAMPLES:,} resamples, paired by document (rise) and by item "
        "(average), of the mean over the seeds: other orders of the calibration files, other searches.",
        "Bridged: seeds without a cell of the method at that sparsity, taken between its cells 10 points away.",
        "Time: seconds of calibration and search as a share of WiSparse's, on the same device.",
        *pruned_lines(records),
        *model_lines(own_weights(records)),
    ]
    head = headed("# The frontier: what a token reads, and what it costs", data.cells.values())
    return introduced(head, lines)


COMPARED: list[Column[AtEqualBytes]] = [
    Column("model", "Model", lambda found: found.model),
    Column("sparsity", "Sparsity", lambda found: found.sparsity, form=PERCENT),
    Column("method", "Method", lambda found: found.method),
    Column("budget", "WiSparse's budget", lambda found: found.budget),
    Column("seeds", "Seeds", lambda found: found.seeds_text),
    Column("bytes", "MB/token", lambda found: found.bytes_per_token, 0, MEGABYTES),
    Column("rise", "Rise ÷ WiSparse's", lambda found: found.rise_share, 4, number(2), bounds=True),
    Column("by_seed", "By seed", lambda found: found.spread_text),
    Column("average", "Average − WiSparse's", lambda found: found.average_difference, 4, number(2, sign="+"),
           bounds=True, absent=NOT_MEASURED),
    Column("time", "Time ÷ WiSparse's", lambda found: found.time_share, 5, number(3)),
]  # fmt: skip


def above(data: FrontierData) -> str:
    """Settings, and each method against WiSparse at the same bytes."""
    compared = list(entries_as_rows(COMPARED, comparisons(data)))
    sections = [_header(data), "## At the bytes that WiSparse reads"]
    return "\n\n".join([*sections, markdown_table(COMPARED, compared), "## Every cell"])


FRONTIER = Table(
    name="frontier",
    title="Every method against the bytes it reads",
    command="python repro/run.py experiment=frontier",
    read=read_frontier,
    entries=entries,
    columns=columns,
    above=above,
)
