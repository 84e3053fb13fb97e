"""Formats of quantised weights, and plans beside them, for the page on them."""

from __future__ import annotations

from pathlib import Path

from ...configuration import REPOSITORY
from ...tables.csv_rows import Row, read_rows
from ...tables.text import NOT_MEASURED, table_row

PLANS = REPOSITORY / "results" / "quantised_plans.csv"
OF_FORMATS = "format"
"""The part of the rows that compare formats; the others compare plans and what they are made on."""


def formats_table(path: Path = PLANS) -> str:
    """Perplexity of every format over that of the own weights, dense and with one plan."""
    rows = [row for row in read_rows(path) if row["part"] == OF_FORMATS]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    heads = ["model", "seed", "format", "bits a weight", *methods]
    lines = [table_row(heads), "|---|---:|---|---:|" + "---|" * len(methods)]
    for place in dict.fromkeys(map(_format, rows)):
        mine = {row["method"]: row for row in rows if _format(row) == place}
        bits = next(iter(mine.values()))["bits_a_weight"] or "8, and scales"
        found = (_ratio(mine[method]) if method in mine else NOT_MEASURED for method in methods)
        lines.append(table_row([*place, bits, *found]))
    return "\n".join(lines)


def plans_table(path: Path = PLANS) -> str:
    """What a plan and its weights are made on: perplexity over that of another way, at equal weights read."""
    heads = ["model", "seed", "weights", "method", "", "compared with", "perplexity ÷ its"]
    lines = [table_row(heads), "|---|---:|---|---|---|---|---|"]
    for row in read_rows(path):
        if row["part"] != OF_FORMATS:
            names = ("model", "seed", "quantisation", "method", "setting", "compared_with")
            lines.append(table_row([*(row[name] for name in names), _ratio(row)]))
    return "\n".join(lines)


def _format(row: Row) -> tuple[str, str, str]:
    return row["model"], row["seed"], row["setting"]


def _ratio(row: Row) -> str:
    value, low, high = (f"{float(row[f'ratio{end}']):.3f}" for end in ("", "_low", "_high"))
    return f"{value} [{low}, {high}]"
