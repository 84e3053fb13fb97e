"""The whole suite at full size with random weights: what each part of a cell takes, as CSV and Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...method.errors import UserError
from ..record import has_random_weights
from .cells import MeasuredCell, TableData, method_rank, read_table
from .csv_rows import csv_text
from .text import NOT_MEASURED, number_text, settings_lines, table_row

PARTS = ("load", "plan", "evaluation", "latency")
"""Parts of a cell, in order; load is next to nothing where the cell before had the same model."""
HEADS = {
    "model": "Model", "method": "Method", "sparsity": "Sparsity", "realised_sparsity": "Realised",
    "items": "Items", "load_s": "Load s", "plan_s": "Plan s", "evaluation_s": "Tasks s",
    "latency_s": "Speed s", "peak_gpu_bytes": "Peak GB", "tok_s": "tok/s", "dense_tok_s": "Dense tok/s",
    "average": "Average", "chance": "Chance",
}  # fmt: skip
"""Columns of the Markdown, by those of the CSV."""


def read_full_size(folder: Path) -> TableData:
    """Every cell below a folder. Raises UserError for one of a trained model: its scores belong in Table 1."""
    data = read_table(folder)
    for cell in data.cells.values():
        if not has_random_weights(cell.record["config"]):
            raise UserError(
                f"{cell.folder} has trained weights; this table is of random ones, Table 1 of its kind"
            )
    return data


def full_size_csv(data: TableData) -> str:
    """One row a cell: seconds by part, bytes, tokens a second, and scores in percent."""
    return csv_text((*HEADS, *data.tasks, "device", "commit"), _rows(data))


def _rows(data: TableData) -> Iterator[dict[str, Any]]:
    for key in sorted(data.cells, key=lambda key: (key[0], method_rank(key[1]), key[2])):
        yield _row(data.cells[key])


def _row(cell: MeasuredCell) -> dict[str, Any]:
    record, latency = cell.record, cell.record["latency"]
    tasks = record["tasks"]
    model, method, sparsity = cell.key
    return {
        "model": model,
        "method": method,
        "sparsity": f"{sparsity:g}",
        "realised_sparsity": number_text(record["realised"]["realised_sparsity"], 5),
        "items": sum(task["n"] for task in tasks.values()),
        **{f"{part}_s": number_text(record["seconds"][part], 3) for part in PARTS},
        "peak_gpu_bytes": record["memory"].get("cuda_bytes", ""),
        "tok_s": number_text(latency["tok_s"], 3),
        "dense_tok_s": number_text(latency["timings"]["engine-dense"]["tok_s"], 3),
        "average": number_text(record["average"], 3),
        "chance": number_text(100 * sum(task["chance"] for task in tasks.values()) / len(tasks), 3),
        **{name: number_text(100 * task["value"], 3) for name, task in tasks.items()},
        "device": record["model"]["device_name"],
        "commit": record["git"]["commit"] if record["git"] else "",
    }


def full_size_markdown(data: TableData) -> str:
    """The table as people read it."""
    latency = data.any_record["latency"]
    lines = [
        "**Random weights: every score is chance, give or take its few items, and says nothing of a method.**",
        *settings_lines(data),
        f"Speed: the decode engine, batch {latency['batch']}, a prompt of {latency['prompt']} tokens and "
        f"{latency['new_tokens']} new ones, default tiles; dense is its own dense path, timed in turn.",
        "Plan: calibration and search. Peak: highest GPU memory of the cell.",
    ]
    return (
        "\n".join(
            [
                "# The whole suite at full size",
                "",
                *(f"- {line}" for line in lines),
                "",
                table_row(HEADS.values()),
                table_row(["---"] * 2 + ["---:"] * (len(HEADS) - 2)),
                *(table_row(_texts(row)) for row in _rows(data)),
            ]
        )
        + "\n"
    )


def _texts(row: dict[str, Any]) -> Iterator[str]:
    for name in HEADS:
        value = row[name]
        if name == "peak_gpu_bytes":
            yield f"{value / 1e9:.1f}" if value else NOT_MEASURED
        elif name.endswith("sparsity"):
            yield f"{100 * float(value):.1f} %"
        elif name in ("model", "method", "items"):
            yield str(value)
        else:
            yield f"{float(value):.1f}"
