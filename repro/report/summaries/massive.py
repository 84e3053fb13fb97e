"""Where massive activations are, what they need of a sparse model, and what it costs to give it to them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from ...configuration import REPOSITORY
from ...studies.massive_entries import TIMES_MEDIAN
from ...tables.csv_rows import Row, read_rows
from ...tables.text import table_row

NEEDS = REPOSITORY / "results" / "real" / "massive_needs.csv"
ENTRIES = NEEDS.with_name("massive_needs_entries.csv")
SITES = {"mlp_hidden": "input of down", "stream": "residual stream behind the block"}
"""What sites are called; a site that is massive nowhere has no row."""
DEAREST = 3
"""Blocks that are named, of those in which the first token is dearest."""
DROPPED, ALONE = "dropped alone", "first token alone sparse"


def entries_table(path: Path = ENTRIES) -> str:
    """Channels that are massive at the first token, in the model's own bases, by site and run of blocks."""
    rows = [row for row in read_rows(path) if row["bases"] == "own" and _times(row) >= 1]
    heads = ["", "blocks", "channels", "mean |x| of the first token", "÷ the site's median", "other tokens"]
    lines = [table_row(heads), "|---|---:|---|---:|---:|---:|"]
    for run in _runs(rows):
        blocks = [int(row["block"]) for row in run]
        channels = dict.fromkeys(row["channel"] for row in run)
        sizes = [float(row["first"]) for row in run]
        times = [float(row["first"]) / float(row["median"]) for row in run]
        others = max(float(row["other_tokens"]) for row in run)
        what = [SITES.get(run[0]["site"], run[0]["site"]), _span(blocks), ", ".join(channels)]
        lines.append(table_row([*what, _span(sizes, ",.0f"), _span(times, ",.0f"), f"{others:.1%}"]))
    return "\n".join(lines)


def dropped_table(path: Path = NEEDS) -> str:
    """Massive entries dropped from the dense model, and nothing else."""
    lines = [table_row(["dropped, and nothing else", "divergence, nats", "perplexity"]), "|---|---:|---:|"]
    for row in read_rows(path):
        if row["part"] == DROPPED and row["method"] == "dense, own bases":
            ratio = "× " + "{:,.2f} [{:,.2f}, {:,.2f}]".format(*(1 + value for value in _interval(row, "rise")))
            lines.append(table_row([row["setting"], _divergence(row), ratio]))
    return "\n".join(lines)


def needs_table(path: Path = NEEDS) -> str:
    """What plans lose with all tokens sparse, with more kept, and at the first token alone, by method."""
    rows = [row for row in read_rows(path) if row["part"] != DROPPED]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [table_row(["", *(f"`{method}`" for method in methods)]), "|---" * (1 + len(methods)) + "|"]
    settings = [row["setting"] for row in rows if row["method"] == methods[0] and _shown(row)]
    for setting in settings:
        mine = [_of(rows, method, setting) for method in methods]
        part = next(row["part"] for row in mine if row)
        cells = [_cell(row) if row else "none" for row in mine]
        lines.append(table_row([_named(part, setting), *cells]))
    blocks = [_dearest([row for row in rows if row["method"] == method]) for method in methods]
    lines.append(table_row(["first token alone sparse, in the dearest blocks", *blocks]))
    few = [[row for row in rows if row["method"] == method and _few(row)][-1] for method in methods]
    cells = [f"{row['setting'].removeprefix('the first token in ')}: {_cell(row)}" for row in few]
    lines.append(table_row(["kept besides, the first token in the dearest five", *cells]))
    return "\n".join(lines)


def _runs(rows: list[Row]) -> Iterator[list[Row]]:
    """Rows of a channel's blocks that follow each other in the stream, and of a block's channels elsewhere."""
    inputs = (row for row in rows if row["site"] != "stream")
    for _, found in groupby(inputs, lambda row: (row["site"], row["block"])):
        yield list(found)
    stream = sorted(
        (row for row in rows if row["site"] == "stream"),
        key=lambda row: (int(row["channel"]), int(row["block"])),
    )
    numbered = enumerate(stream)
    for _, found in groupby(numbered, lambda pair: (pair[1]["channel"], int(pair[1]["block"]) - pair[0])):
        yield [row for _, row in found]


def _times(row: Row) -> float:
    """The first token's mean size over what is massive."""
    return float(row["first"]) / float(row["median"]) / TIMES_MEDIAN


def _span(values: list[float] | list[int], form: str = "") -> str:
    low, high = (format(value, form) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _interval(row: Row, name: str) -> list[float]:
    return [float(row[f"{name}{end}"]) for end in ("", "_low", "_high")]


def _divergence(row: Row) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*_interval(row, "divergence"))


def _cell(row: Row) -> str:
    more = float(row["extra_bytes"] or 0) / 1e6
    return _divergence(row) + (f", {more:+.2f} MB" if more else "")


def _of(rows: list[Row], method: str, setting: str) -> Row | None:
    found = (row for row in rows if row["method"] == method and row["setting"] == setting)
    return next(found, None)


def _shown(row: Row) -> bool:
    """Whether every method has a row of the setting: blocks are each method's own."""
    return not _of_block(row) and not _few(row)


def _of_block(row: Row) -> bool:
    return row["part"] == ALONE and "block " in row["setting"]


def _few(row: Row) -> bool:
    return row["part"] == "kept besides" and "in blocks" in row["setting"]


def _named(part: str, setting: str) -> str:
    return setting if part == "plan" else f"{part}: {setting}"


def _dearest(rows: list[Row]) -> str:
    single = [row for row in rows if _of_block(row) and " of " not in row["setting"]]
    single.sort(key=lambda row: -float(row["divergence"]))
    named = [(row["setting"].split()[-1], float(row["divergence"])) for row in single[:DEAREST]]
    return ", ".join(f"{block}: {divergence:.3f}" for block, divergence in named)
