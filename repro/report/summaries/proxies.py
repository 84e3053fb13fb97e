"""How fast steps are whose neurons are chosen, with bounds on k, or in rotated bases, for docs/field.md."""

from __future__ import annotations

from pathlib import Path

from ...configuration import REPOSITORY
from ...tables.csv_rows import Row, read_rows
from ...tables.speed.step_rows import newest_runs
from ...tables.text import NOT_MEASURED, table_row

STEPS = REPOSITORY / "results" / "proxies.csv"
HEADS = (
    "device", "shapes", "blocks", "not read", "dense, ms", "thresholds", "bounds on k", "proxies",
    "routers", "rotated", "rotated stream", "neurons that proxies choose", "that routers choose",
)  # fmt: skip
KINDS = ("thresholds", "bounded", "proxies", "routed", "rotated", "rotated stream")
CHOOSING = ("proxies", "routed")


def _gain(dense: float, row: Row | None) -> str:
    return NOT_MEASURED if row is None else f"{dense / float(row['ms']):.2f}×"


def proxies_table(path: Path = STEPS) -> str:
    """A row for every device, shape and sparsity: times that each kind's step fits into the run's dense one."""
    runs = newest_runs(read_rows(path))
    lines = [table_row(HEADS), "|---|---|" + "---:|" * (len(HEADS) - 2)]
    for run, rows in runs.items():
        (dense,) = (float(row["ms"]) for row in rows if row["kind"] == "dense")
        for sparsity in dict.fromkeys(row["sparsity"] for row in rows if row["kind"] != "dense"):
            mine = {row["kind"]: row for row in rows if row["sparsity"] == sparsity}
            gains = [_gain(dense, mine.get(kind)) for kind in KINDS]
            chosen = [f"{float(mine[kind]['neurons']):.0%}" if kind in mine else "" for kind in CHOOSING]
            lines.append(table_row([*run, f"{float(sparsity):.0%}", f"{dense:.2f}", *gains, *chosen]))
    return "\n".join(lines if runs else [*lines, table_row([NOT_MEASURED, *[""] * (len(HEADS) - 1)])])
