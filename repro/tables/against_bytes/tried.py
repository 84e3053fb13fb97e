"""Settings tried, at TEAL's bytes, and which of them loses least on text that no calibration has seen.

    python -m wisparse.repro.tables.against_bytes.tried FOLDER --series 5 --rows results/real/settings_tried.csv

writes a row of each setting, sparsity and text in place of that series' rows. Without --rows it prints what the
best setting changes of its method, as it stands on a command line.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from ....method.errors import UserError
from ...archive import unpacked
from ...configuration import mistakes_in_one_line
from ...measured.real_cells import RealData, read_tried
from ...records import write_text
from ..csv_rows import Row, csv_text, read_rows
from .real_rows import RealEntry, entries

CHOSEN_ON = "wikitext_apart"
"""Suite whose text neither a calibration nor another suite reads."""
TEXTS = {
    CHOSEN_ON: "WikiText-2 validation, articles apart",
    "wikitext": "WikiText-2 test",
    "english": "held-out English prose",
}
"""What the rows call the text of a suite."""
NAME, METHOD = "method.name=", "method="


def tried_rows(data: RealData, series: int) -> Iterator[dict[str, Any]]:
    """A row of each sparse cell, in the order of the table."""
    for entry in entries(data):
        if entry.method == "dense" or not entry.cells:
            continue
        ((_, cell),) = entry.cells.items()
        perplexity = cell.record["perplexity"]
        share = entry.rise_share
        yield {
            "series": series,
            "setting": _setting(cell.record, entry.section.protocol),
            "sparsity": entry.sparsity,
            "text": TEXTS.get(entry.section.suite, entry.section.suite),
            "realised_sparsity": f"{cell.record['realised']['realised_sparsity']:.4f}",
            "perplexity": None if perplexity is None else f"{perplexity:.3f}",
            "rise_share": None if share is None else f"{share.value:.3f}",
            "between_cells": None if share is None else "true",
        }


def best_changes(data: RealData, trained: bool, sparsity: float | None = None) -> list[str]:
    """What the setting with the least mean share of TEAL's rise on the text apart changes of its method.

    trained: whether of those that train anything, or of the others. sparsity: the only one that counts; None:
    all, and settings that lack one which others have are passed over. Raises UserError where none is left.
    """
    of_text = [
        entry
        for entry in entries(data)
        if entry.section.suite == CHOSEN_ON
        and entry.sparsity == (entry.sparsity if sparsity is None else sparsity)
        and entry.trained == trained
        and entry.rise_share
    ]
    sparsities = {entry.sparsity for entry in of_text}
    by_method: dict[str, list[RealEntry]] = {}
    for entry in of_text:
        by_method.setdefault(entry.method, []).append(entry)
    whole = [found for found in by_method.values() if {entry.sparsity for entry in found} == sparsities]
    if not whole:
        raise UserError(
            f"no setting was compared with {data.reference} on suite={CHOSEN_ON}; measure both there first"
        )
    best = min(whole, key=lambda found: fmean(entry.rise_share.value for entry in found))
    (cell,) = best[0].cells.values()
    return _changes(cell.record)


def _changes(record: dict[str, Any]) -> list[str]:
    """Settings of its method that a cell's command line gave, but for the name."""
    words = shlex.split(record["command"])
    return [word for word in words if word.startswith("method.") and not word.startswith(NAME)]


def _setting(record: dict[str, Any], protocol: str) -> str:
    text = record["calibration"]
    given = [word.removeprefix(METHOD) for word in shlex.split(record["command"]) if word.startswith(METHOD)]
    parts = [
        given[0] if given and "," not in given[0] else record["method"]["name"],
        *_changes(record),
        f"{text['sequences']} sequences of {text['length']:,} tokens of {text['name']}",
        f"protocol {protocol}",
        *([f"seed {record['seed']}"] if record["seed"] else []),
    ]
    return ", ".join(parts)


def with_series(old: list[Row], new: list[dict[str, Any]], series: int) -> str:
    """The CSV with these rows in place of a series' own."""
    columns = [*old[0]] if old else [*new[0]]
    kept = [row for row in old if row["series"] != str(series)]
    return csv_text(columns, [*kept, *new])


@mistakes_in_one_line()
def main() -> None:
    """Print what the best setting changes, or write the rows."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("records", nargs="+", type=Path, help="folders of cells")
    parser.add_argument("--series", type=int, default=5, help="number of these runs in the rows")
    parser.add_argument("--trained", action="store_true", help="the best of those that train anything")
    parser.add_argument("--sparsity", type=float, help="the only one that the best is chosen at")
    parser.add_argument("--rows", type=Path, help="CSV that the rows are written to")
    chosen = parser.parse_args()
    data = read_tried(*(unpacked(folder) for folder in chosen.records))
    if chosen.rows is None:
        print(" ".join(shlex.quote(change) for change in best_changes(data, chosen.trained, chosen.sparsity)))
        return
    if not (rows := list(tried_rows(data, chosen.series))):
        raise UserError("nothing but dense cells is there; measure a setting first")
    write_text(chosen.rows, with_series(read_rows(chosen.rows), rows, chosen.series))


if __name__ == "__main__":
    main()
