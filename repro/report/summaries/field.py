"""What was measured of every method, in one table for docs/field.md: what it reads, loses and gains."""

from __future__ import annotations

from pathlib import Path

from ...configuration import REPOSITORY
from ...measured.cells import method_rank
from ...tables.csv_rows import Row, read_rows
from ...tables.speed.step_rows import newest_runs
from ...tables.table import is_number
from ...tables.text import NOT_MEASURED, table_row
from .real import REAL, SETTINGS, mean_shown, most_seeds

GIVEN_LOSS = REPOSITORY / "results" / "real" / "given_loss.csv"
SPEED = REPOSITORY / "results" / "speed.csv"
STEPS = REPOSITORY / "results" / "proxies.csv"
SPARSITY, LOSS = 0.5, 0.1
DECODED = {
    "device": "NVIDIA H200",
    "model": "llama3.1-8b-random",
    "dtype": "bfloat16",
    "sparsity": str(SPARSITY),
    "batch": "1",
    "prompt": "5",
    "baseline": "engine-dense",
}
"""Which rows of the speeds are shown."""
STEPPED = (DECODED["device"], "llama3.1-8b", "16")
"""Device, shapes and blocks of the steps alone that stand where no decoding was timed."""
KINDS = {
    "larosa": "rotated",
    "larosa_each": "rotated",
    "larosa_adapter": "rotated stream",
    "teal_rotated": "rotated",
    "wina_rotated": "rotated",
    "prox": "proxies",
    "topk_guided": "bounded",
    "teal": "thresholds",
    "was": "thresholds",
}
"""What each method's plans are in those steps."""
HEADS = (
    "", "not read, gross", "MB/token", "perplexity", "rise ÷ TEAL's at its bytes", "English",
    f"saved at +{LOSS:.0%} perplexity", "decoding over dense",
)  # fmt: skip


def field_table(
    path: Path = REAL, given_loss: Path = GIVEN_LOSS, speed: Path = SPEED, steps: Path = STEPS
) -> str:
    """A row for every method on the real model at one sparsity; an empty speed: not timed there.

    steps: whole decode steps by kind of plan, whose gains over the dense step of their run are marked.
    """
    rows = [row for row in read_rows(path) if SETTINGS.items() <= row.items()]
    saved = {
        row["method"]: row
        for row in read_rows(given_loss)
        if {"suite": "wikitext", "calibration": "english", "loss": str(LOSS), **SETTINGS}.items() <= row.items()
    }
    gains = _steps(steps) | {
        row["method"]: f"{float(row['speedup']):.2f}×"
        for row in read_rows(speed)
        if DECODED.items() <= row.items()
    }
    lines = [table_row(HEADS), "|---" + "|---:" * (len(HEADS) - 1) + "|"]
    seeds = most_seeds(rows)
    for method in sorted({row["method"] for row in rows}, key=method_rank):
        wikitext, english = (
            [row for row in rows if (row["suite"], row["method"]) == (suite, method)]
            for suite in ("wikitext", "english")
        )
        read = mean_shown(wikitext, SPARSITY, "bytes_per_token", 0)
        gross = mean_shown(wikitext, SPARSITY, "realised_sparsity", 4)
        shown = [
            f"{float(gross):.1%}" if is_number(gross) else gross,
            f"{float(read) / 1e6:.0f}" if is_number(read) else read,
            mean_shown(wikitext, SPARSITY, "perplexity", 2, seeds),
            mean_shown(wikitext, SPARSITY, "rise_share", 2, seeds),
            mean_shown(english, SPARSITY, "average", 1, seeds),
            _saved(saved.get(method)),
            gains.get(method, ""),
        ]
        lines.append(table_row([f"`{method}`", *shown]))
    return "\n".join(lines)


def _steps(path: Path) -> dict[str, str]:
    """How many times as fast as the dense one a step of a method's kind of plan is, by method."""
    rows = newest_runs(read_rows(path)).get(STEPPED, [])
    ms = {row["kind"]: float(row["ms"]) for row in rows if float(row["sparsity"]) in (0.0, SPARSITY)}
    return {method: f"{ms['dense'] / ms[kind]:.2f}× (step)" for method, kind in KINDS.items() if kind in ms}


def _saved(row: Row | None) -> str:
    """Net sparsity at the loss, or on which side of the cells it lies."""
    if row is None:
        return ""
    if row["sparsity"]:
        return f"{float(row['sparsity']):.1%}"
    if row["status"] == "not reached":
        return f"> {float(row['last_cell_sparsity']):.1%}"
    return f"< {float(row['first_cell_sparsity']):.1%}" if row["first_cell_sparsity"] else NOT_MEASURED
