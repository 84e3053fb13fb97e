"""Cost of making plans as CSV and Markdown: results/search-cost.{csv,md}.

python -m wisparse.repro.cost.search_cost_table FILE.csv ...     # add what another machine measured
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from ...method.errors import UserError
from ..configuration import REPOSITORY, mistakes_in_one_line
from ..models.architecture import PAPER_MODELS
from ..tables.csv_rows import Row, csv_path, csv_text, read_rows, write_table
from ..tables.text import NOT_MEASURED

COLUMNS = (
    "device", "model", "parameters", "dtype", "method", "stage", "sparsity", "unit", "tokens", "measured",
    "seconds", "setup_seconds", "seconds_an_evaluation", "total", "minutes", "extrapolated", "peak_gpu_bytes",
    "torch", "transformers", "commit", "utc",
)  # fmt: skip
KEY = ("device", "model", "parameters", "dtype", "method", "stage", "sparsity", "tokens")
"""A row with the same of these is measured anew."""
MODELS = tuple(f"{model}-random" for model in PAPER_MODELS)
"""Whose cost the table is about."""
TABLE = REPOSITORY / "results" / "search-cost"


def read_costs(path: Path) -> list[Row]:
    """Rows of a CSV, none where there is no file. Raises UserError for a file with other columns."""
    rows = read_rows(path)
    if rows and tuple(rows[0]) != COLUMNS:
        raise UserError(f"{path} is no table of search costs; remove it or give another cost.output")
    return rows


def merged(rows: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """Old rows with the new ones in their places or at the end."""
    by_key = {tuple(row[name] for name in KEY): row for row in [*rows, *new]}
    return list(by_key.values())


def write_costs(output: Path, rows: list[Row]) -> None:
    """Write OUTPUT.csv and OUTPUT.md."""
    write_table(output, csv_text(COLUMNS, rows), costs_markdown(rows))


HEADER = """\
# What making plans costs

- Random weights of the full size and random tokens: a search evaluates as many candidates on them as on any
  model and text. One device. The searches and rates are measured after a first pass that is not counted.
- Evaluation: what the stage repeats. Candidate: the whole model on so many tokens, what offspring share counted
  once. Block: one block. Sequence, projection, plan, token, step: as they say.
- Of the searches some evaluations are measured; the minutes of a whole search are then **extrapolated**: its
  rate times the evaluations of its whole budget, none of them spared for having been seen, and its set-up.
- Peak: highest GPU memory during the stage, weights and statistics included."""

HEADS = (
    "Model", "Method", "Stage", "Evaluation", "Tokens each", "Measured", "ms each", "Set-up s", "Whole budget",
    "Minutes", "Peak GB", "Commit",
)  # fmt: skip


def costs_markdown(rows: list[Row]) -> str:
    """A section a device; models that no GPU has measured are named as not measured."""
    sections = [_section(device, rows) for device in dict.fromkeys(row["device"] for row in rows)]
    on_gpu = {row["model"] for row in rows if row["peak_gpu_bytes"]}
    lacking = [model for model in MODELS if model not in on_gpu]
    if lacking:
        sections.append(f"On a GPU {NOT_MEASURED}: {', '.join(lacking)}. `make reproduce-search-cost` does it.")
    return "\n\n".join([HEADER, *sections]) + "\n"


def _section(device: str, rows: list[Row]) -> str:
    found = [row for row in rows if row["device"] == device]

    def distinct(column: str) -> str:
        return ", ".join(dict.fromkeys(row[column] for row in found))

    return "\n".join(
        [
            f"## {device}",
            "",
            f"{distinct('dtype')}; torch {distinct('torch')}, transformers {distinct('transformers')}.",
            "",
            f"| {' | '.join(HEADS)} |",
            "| --- | --- | --- | --- |" + " ---: |" * (len(HEADS) - 4),
            *(f"| {' | '.join(_cells(row))} |" for row in found),
        ]
    )


def _cells(row: Row) -> list[str]:
    minutes = f"{float(row['minutes']):.2f}" if row["minutes"] else "a rate"
    return [
        f"{row['model']} ({int(row['parameters']) / 1e9:.2f} B)",
        row["method"],
        row["stage"],
        row["unit"],
        f"{int(row['tokens']):,}" if row["tokens"] != "0" else "",
        f"{int(row['measured']):,}",
        f"{1000 * float(row['seconds_an_evaluation']):,.3f}",
        f"{float(row['setup_seconds']):.1f}" if float(row["setup_seconds"]) else "",
        f"{int(row['total']):,}" if row["total"] else "",
        f"{minutes}, extrapolated" if row["extrapolated"] == "yes" else minutes,
        f"{int(row['peak_gpu_bytes']) / 1e9:.1f}" if row["peak_gpu_bytes"] else NOT_MEASURED,
        row["commit"][:7],
    ]


@mistakes_in_one_line()
def main() -> None:
    """Add the rows of other files to results/search-cost.csv and write its Markdown anew."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("files", type=Path, nargs="*", help="CSV files of the same columns")
    arguments = parser.parse_args()
    if missing := [str(path) for path in arguments.files if not path.is_file()]:
        raise UserError(f"there is no file {missing[0]}")
    rows = read_costs(csv_path(TABLE))
    for path in arguments.files:
        rows = merged(rows, read_costs(path))
    write_costs(TABLE, rows)
    print(f"written: {TABLE}.md and {TABLE}.csv")


if __name__ == "__main__":
    main()
