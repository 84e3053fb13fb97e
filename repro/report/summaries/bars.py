"""What was aimed at with this project's methods on the real model, and whether it was reached."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from ...tables.csv_rows import Row, read_rows
from ...tables.text import NOT_MEASURED, table_row
from .own import OTHER_TEXT, OWN

AIMS: Mapping[bool, Mapping[float, float]] = {False: {0.5: 0.7, 0.6: 0.65}, True: {0.5: 0.55, 0.6: 0.5}}
"""Largest share of TEAL's rise, of what is lightly trained and of what is not, by sparsity."""
TEXTS = {"prose": OWN, "prose and WikiText-2's validation part": OTHER_TEXT}
"""Calibration texts, and the tables of what was measured on them."""
AIMED = ("equal_loss_folded", "equal_loss_trained")
"""How the names of the methods begin that the aims are of."""
SUITES = {"wikitext": "WikiText-2", "english": "English"}
PROTOCOLS = ("half", "all")


def bars_table(texts: Mapping[str, Path] = TEXTS) -> str:
    """Every aim beside what was reached, by calibration text and protocol: means over the seeds."""
    lines = [
        table_row(["", "calibration text", "protocol", "sparsity", "aimed at", *SUITES.values()]),
        "|---|---|---|---:|---:|" + "---|" * len(SUITES),
    ]
    for trained, aims in AIMS.items():
        kind = "lightly trained" if trained else "training-free"
        for text, path in texts.items():
            rows = [row for row in read_rows(path) if _aimed(row, trained)]
            for protocol in PROTOCOLS:
                for sparsity, aim in aims.items():
                    mine = [
                        row for row in rows if (row["protocol"], row["sparsity"]) == (protocol, str(sparsity))
                    ]
                    found = (reached([row for row in mine if row["suite"] == suite], aim) for suite in SUITES)
                    lines.append(table_row([kind, text, protocol, f"{sparsity:.0%}", f"{aim:.2f}", *found]))
    return "\n".join(lines)


def _aimed(row: Row, trained: bool) -> bool:
    return row["method"].startswith(AIMED) and row["status"] == "measured" and row["trained"] == str(trained)


def reached(rows: list[Row], aim: float) -> str:
    """The share that was reached, over how many seeds, and whether that is what was aimed at."""
    if not rows:
        return NOT_MEASURED
    shares = [float(row["rise_share"]) for row in rows if row["rise_share"]]
    if not shares:
        return rows[0]["compared"]
    seeds = f"{len(shares)} seed{'s' if len(shares) > 1 else ''}"
    return f"{'met' if fmean(shares) <= aim else 'missed'}: {fmean(shares):.2f} ({seeds})"
