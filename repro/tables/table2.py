"""Table 2, the ablation: WiSparse stage by stage, as the Markdown that people read and the CSV for programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...method.errors import UserError
from ..record import is_embedded
from .cells import MeasuredCell, TableData, read_table
from .csv_rows import csv_text
from .paired_bootstrap import RESAMPLES
from .text import (
    EMBEDDED_NOTE,
    NOT_MEASURED,
    interval_text,
    number_text,
    settings_lines,
    table_row,
)

STAGES = {
    "dense": "dense",
    "wisparse_activation_only": "activation only",
    "wisparse_weight": "+ weight",
    "wisparse_coarse": "+ weight + coarse",
    "wisparse": "+ weight + coarse + fine",
}
"""Configurations by method, in the paper's order; each is compared with the one before it."""

FIRST_STAGE = "wisparse_activation_only"
CSV_COLUMNS = (
    "model", "method", "configuration", "sparsity", "realised_sparsity", "bytes_per_token", "perplexity",
    "average", "kept",
)  # fmt: skip
CSV_BOUNDS = ("step", "step_low", "step_high", "step_perplexity_ratio", "status")


def read_ablation(folder: Path) -> TableData:
    """Read every cell below a folder. Raises UserError when there are others than the stages'."""
    data = read_table(folder)
    if others := sorted({cell.key[1] for cell in data.cells.values()} - STAGES.keys()):
        raise UserError(
            f"{folder} holds {', '.join(others)}, which Table 2 has no row for; keep its records apart"
        )
    return data


def _rows(data: TableData) -> Iterator[tuple[str, float, str, MeasuredCell | None, MeasuredCell | None]]:
    """Model, sparsity, method, its cell and that of the stage before; without cells where not measured."""
    for model in data.models:
        for sparsity in data.sparsities:
            before = None
            for method in STAGES:
                key = (model, method, 0.0 if method == "dense" else sparsity)
                cell = data.cells.get(key)
                yield model, sparsity, method, cell, None if method == FIRST_STAGE else before
                before = cell


def table2_csv(data: TableData) -> str:
    """One row a configuration; accuracies in percent, `step` is the average minus that of the stage before."""
    return csv_text((*CSV_COLUMNS, *data.tasks, *CSV_BOUNDS), _csv_rows(data))


def _csv_rows(data: TableData) -> Iterator[dict[str, Any]]:
    for model, sparsity, method, cell, before in _rows(data):
        row = {
            "model": model,
            "method": method,
            "configuration": STAGES[method],
            "sparsity": 0.0 if method == "dense" else sparsity,
        }
        yield row | (_csv_numbers(data, cell, before) if cell else {"status": NOT_MEASURED})


def _csv_numbers(data: TableData, cell: MeasuredCell, before: MeasuredCell | None) -> dict[str, Any]:
    record, realised = cell.record, cell.record["realised"]
    numbers = {
        "realised_sparsity": number_text(realised["realised_sparsity"], 5),
        "bytes_per_token": number_text(realised["bytes_per_token"], 0),
        "perplexity": number_text(record["perplexity"], 4),
        "average": number_text(record["average"], 3),
        "kept": number_text(data.kept(cell), 3),
        **{name: number_text(100 * task["value"], 3) for name, task in record["tasks"].items()},
        "status": "measured",
    }
    if before and (step := data.average_difference(cell, before)):
        bounds = {"step": step.value, "step_low": step.low, "step_high": step.high}
        numbers |= {name: number_text(value, 4) for name, value in bounds.items()}
    if before and (ratio := data.perplexity_ratio(cell, before)):
        numbers["step_perplexity_ratio"] = number_text(ratio.value, 4)
    return numbers


def table2_markdown(data: TableData) -> str:
    """Table 2 as in the paper, tasks and average by configuration, with what each stage adds."""
    embedded = all(is_embedded(cell.record["config"]) for cell in data.cells.values())
    title = f"# Table 2 on the embedded models: WiSparse stage by stage\n\n{EMBEDDED_NOTE}"
    lines = [
        *settings_lines(data),
        "Activation only: |x|, every projection at the same sparsity. Weight: |x|·c^α with α by layer. Coarse: "
        "sparsity over blocks. Fine: greedy inside them. α is searched last, after the stages that are on.",
        f"Step: against the row above; 95 % bootstrap intervals from {RESAMPLES:,} resamples, paired by item "
        "(average) and by document (perplexity).",
    ]
    head = title if embedded else "# Table 2: WiSparse stage by stage"
    return "\n".join([head, "", *(f"- {line}" for line in lines), "", _table(data)]) + "\n"


def _table(data: TableData) -> str:
    numbers = [*data.tasks, "Average", "Step", "Kept %", "Realised %", "Perplexity", "Step of perplexity"]
    lines = [
        table_row(["Model", "Sparsity", "Configuration", *numbers]),
        table_row(["---"] * 3 + ["---:"] * len(numbers)),
    ]
    for model, sparsity, method, cell, before in _rows(data):
        shown = "0" if method == "dense" else f"{100 * sparsity:g} %"
        values = [NOT_MEASURED, *[""] * (len(numbers) - 1)] if cell is None else _texts(data, cell, before)
        lines.append(table_row([model, shown, STAGES[method], *values]))
    return "\n".join(lines)


def _texts(data: TableData, cell: MeasuredCell, before: MeasuredCell | None) -> list[str]:
    record = cell.record
    return [
        *(f"{100 * record['tasks'][task]['value']:.1f}" for task in data.tasks),
        number_text(record["average"], 2),
        interval_text(data.average_difference(cell, before), "{:+.2f}") if before else "",
        number_text(data.kept(cell), 1),
        f"{100 * record['realised']['realised_sparsity']:.1f}",
        number_text(record["perplexity"], 3),
        interval_text(data.perplexity_ratio(cell, before), "×{:.3f}") if before else "",
    ]
