"""What was measured on the real model, in short: every method, and every reading of WiSparse's paper."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from ...configuration import CONFIGURATION, REPOSITORY, described
from ...measured.cells import method_rank
from ...tables.csv_rows import Row, read_rows
from ...tables.text import NOT_MEASURED, table_row

REAL = REPOSITORY / "results" / "real" / "table1.csv"
READINGS = REPOSITORY / "results" / "real" / "readings.csv"
SETTINGS = {"protocol": "half", "search_budget": "medium"}
"""What is shown of the real model: all of it under one protocol, and one search budget."""
SHOWN = (
    ("english", "average", "English {}", 1),
    ("wikitext", "perplexity", "perplexity {}", 2),
    ("wikitext", "rise_share", "rise ÷ TEAL's {}", 2),
)
"""Suite, column of the CSV, title, and decimals shown."""
SPARSITIES = (0.5, 0.6)
FITTING = "wisparse_tokens_protocol"
"""The reading of WiSparse's paper that fits its results best; it stands beside the methods."""


def real_table(path: Path = REAL, readings: Path = READINGS) -> str:
    """Averages, perplexity and its rise on the real model, means over the seeds.

    Methods that were measured with fewer seeds than others, or with these at fewer of the sparsities, stand in
    the chart of the field alone.
    """
    rows = [row for row in read_rows(path) if SETTINGS.items() <= row.items()]
    rows += [row for row in read_rows(readings) if SETTINGS.items() <= row.items() and row["method"] == FITTING]
    if not rows:
        return f"*{NOT_MEASURED.capitalize()}.*"
    heads = [title.format(f"{sparsity:.0%}") for *_, title, _ in SHOWN for sparsity in SPARSITIES]
    lines = [table_row(["", *heads]), "|---" + "|---:" * len(heads) + "|"]
    seeds = most_seeds(rows)
    methods = sorted({row["method"] for row in rows}, key=method_rank)
    whole = {method: _whole(rows, method, seeds) for method in methods if method != "dense"}
    for method in methods:
        if method != "dense" and whole[method] < max(whole.values()):
            continue
        shown = []
        for suite, column, _, digits in SHOWN:
            mine = [row for row in rows if (row["suite"], row["method"]) == (suite, method)]
            shown += [mean_shown(mine, sparsity, column, digits, seeds) for sparsity in SPARSITIES]
        lines.append(table_row([method, *shown]))
    return "\n".join(lines)


def _whole(rows: list[Row], method: str, seeds: int) -> int:
    """How many of the sparsities that are shown the method was measured at with all seeds."""
    mine = [row for row in rows if row["method"] == method]
    return sum(most_seeds([row for row in mine if _at(row, one)]) == seeds for one in SPARSITIES)


def readings_table(path: Path = READINGS) -> str:
    """Perplexity and its rise under every reading that was measured, beside TEAL's; the best first."""
    wanted = SETTINGS | {"suite": SHOWN[-1][0]}
    rows = [row for row in read_rows(path) if wanted.items() <= row.items() and row["method"] != "dense"]
    if not rows:
        return f"*{NOT_MEASURED.capitalize()}.*"
    heads = [title.format(f"{sparsity:.0%}") for *_, title, _ in SHOWN[1:] for sparsity in SPARSITIES]
    lines = [table_row(["", "what differs", "seeds", *heads]), "|---|---|---:" + "|---:" * len(heads) + "|"]
    methods = {row["method"]: [one for one in rows if one["method"] == row["method"]] for row in rows}
    for method, mine in sorted(methods.items(), key=lambda pair: _rise(pair[1])):
        seeds = {row["seed"] for row in mine if row["perplexity"] and float(row["sparsity"]) in SPARSITIES}
        shown = [
            mean_shown(mine, sparsity, column, digits, len(seeds))
            for _, column, _, digits in SHOWN[1:]
            for sparsity in SPARSITIES
        ]
        lines.append(table_row([method, _difference(method), str(len(seeds)), *shown]))
    return "\n".join(lines)


def _rise(rows: list[Row]) -> float:
    """Mean rise at the first sparsity as a share of the reference's; the reference itself is at 1."""
    found = [float(row["rise_share"]) for row in rows if _at(row, SPARSITIES[0]) and row["rise_share"]]
    return fmean(found) if found else 1.0


def _difference(method: str) -> str:
    """What the header of a reading's file says; nothing for a method of its own."""
    path = CONFIGURATION / "reading" / f"{method.removeprefix('wisparse_')}.yaml"
    return described(path) if path.exists() and method.startswith("wisparse_") else ""


def _at(row: Row, sparsity: float) -> bool:
    return row["method"] == "dense" or float(row["sparsity"]) == sparsity


def most_seeds(rows: list[Row]) -> int:
    """The most seeds that any method was measured with at a sparsity that is shown."""
    shown = (row for row in rows if row["status"] == "measured" and float(row["sparsity"]) in SPARSITIES)
    found: dict[tuple[str, ...], set[str]] = {}
    for row in shown:
        found.setdefault((row["suite"], row["method"], row["sparsity"]), set()).add(row["seed"])
    return max(map(len, found.values()), default=0)


def mean_shown(rows: list[Row], sparsity: float, column: str, digits: int, seeds: int = 0) -> str:
    """The mean over the seeds at a sparsity, or why there is none; dense is the same at every sparsity.

    seeds: how many the table says that its means are of. A mean of fewer says of how many it is.
    """
    wanted = [row for row in rows if _at(row, sparsity)]
    values = [float(row[column]) for row in wanted if row[column]]
    if values:
        fewer = len(values) < seeds and wanted[0]["method"] != "dense"
        of = f" ({len(values)} seed{'s' if len(values) > 1 else ''})" if fewer else ""
        return f"{fmean(values):.{digits}f}{of}"
    status = wanted[0]["status"] if wanted else NOT_MEASURED
    if status != "measured":
        return status
    return "" if wanted[0]["method"] in ("dense", wanted[0]["reference"]) else wanted[0]["compared"]
