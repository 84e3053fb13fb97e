"""Table 1 as text: the Markdown that people read and the CSV that programs read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..record import is_embedded
from .cells import OURS, Key, MeasuredCell, TableData
from .csv_rows import csv_text
from .paired_bootstrap import RESAMPLES, Interval
from .text import (
    EMBEDDED_NOTE,
    NOT_MEASURED,
    interval_text,
    number_text,
    settings_lines,
    table_row,
)

EMBEDDED_TITLE = f"# Table 1 on the embedded models\n\n{EMBEDDED_NOTE}"
CSV_COLUMNS = (
    "model", "method", "sparsity", "realised_sparsity", "bytes_per_token", "perplexity", "average", "kept",
)  # fmt: skip
CSV_BOUNDS = (
    "bits_per_byte", "average_minus_dense", "average_minus_dense_low", "average_minus_dense_high",
    "perplexity_ratio", "perplexity_ratio_low", "perplexity_ratio_high", "dense_bytes_per_token", "status",
)  # fmt: skip


def table1_csv(data: TableData) -> str:
    """One row a cell; accuracies and `kept` in percent, sparsities as shares, bounds of 95 % intervals."""
    rows = (_csv_row(data, key) for model in data.models for key in _keys_of(data, model))
    return csv_text((*CSV_COLUMNS, *data.tasks, *CSV_BOUNDS), rows)


def _keys_of(data: TableData, model: str) -> Iterable[Key]:
    yield (model, "dense", 0.0)
    for sparsity in data.sparsities:
        for method in data.methods:
            yield (model, method, sparsity)


def _csv_row(data: TableData, key: Key) -> dict[str, Any]:
    model, method, sparsity = key
    row: dict[str, Any] = {"model": model, "method": method, "sparsity": sparsity}
    cell = data.cells.get(key)
    if cell is None:
        return row | {"status": _absence(data, key)}
    record, realised = cell.record, cell.record["realised"]
    dense = data.dense(model)
    difference = data.average_difference(cell, dense) if dense else None
    ratio = data.perplexity_ratio(cell, dense) if dense else None
    return row | {
        "realised_sparsity": number_text(realised["realised_sparsity"], 5),
        "bytes_per_token": number_text(realised["bytes_per_token"], 0),
        "dense_bytes_per_token": number_text(realised["dense_bytes_per_token"], 0),
        "perplexity": number_text(record["perplexity"], 4),
        "bits_per_byte": number_text(record["bits_per_byte"], 5),
        "average": number_text(record["average"], 3),
        "kept": number_text(data.kept(cell), 3),
        **{name: number_text(100 * task["value"], 3) for name, task in record["tasks"].items()},
        **_bounds("average_minus_dense", difference),
        **_bounds("perplexity_ratio", ratio),
        "status": "measured",
    }


def _bounds(name: str, found: Interval | None) -> dict[str, str]:
    if found is None:
        return {}
    return {
        name: number_text(found.value, 4),
        f"{name}_low": number_text(found.low, 4),
        f"{name}_high": number_text(found.high, 4),
    }


def table1_markdown(data: TableData) -> str:
    """Table 1 as in the paper: model × sparsity × method, then WiSparse against the best baseline."""
    sections = [_header(data), _main_table(data)]
    if OURS in data.methods and len(data.methods) > 1:
        sections.append(_against_best_baseline(data))
    return "\n\n".join(sections) + "\n"


def _header(data: TableData) -> str:
    records = [cell.record for cell in data.cells.values()]
    lines = [
        *settings_lines(data),
        "Realised: block weights not read, weighted by bytes, over the sparsely computed tokens. "
        "MB/token: weights read for such a token, lm_head and low-rank factors included.",
        f"Brackets: 95 % bootstrap intervals from {RESAMPLES:,} resamples, paired by item (averages) and by "
        "document (perplexity). Bold: best of its block.",
    ]
    title = EMBEDDED_TITLE if all(is_embedded(entry["config"]) for entry in records) else "# Table 1"
    return "\n".join([title, "", *(f"- {line}" for line in lines)])


@dataclass(frozen=True)
class Column:
    """One column of the main table; `merit` is what the best cell of a block has most of."""

    title: str
    text: Callable[[MeasuredCell], str]
    merit: Callable[[MeasuredCell], float | None] | None = None


def _columns(data: TableData) -> list[Column]:
    def task_column(task: str) -> Column:
        def value(cell: MeasuredCell) -> float:
            return 100 * cell.record["tasks"][task]["value"]

        return Column(task, lambda cell: f"{value(cell):.1f}", value)

    def against_dense(compare: Callable[..., Interval | None], pattern: str) -> Callable[[MeasuredCell], str]:
        def text(cell: MeasuredCell) -> str:
            dense = data.dense(cell.key[0])
            return "" if dense is None or dense is cell else interval_text(compare(cell, dense), pattern)

        return text

    def negative_perplexity(cell: MeasuredCell) -> float | None:
        perplexity = cell.record["perplexity"]
        return None if perplexity is None else -perplexity

    return [
        *(task_column(task) for task in data.tasks),
        Column("Average", lambda c: number_text(c.record["average"], 2), lambda c: c.record["average"]),
        Column("Kept %", lambda c: number_text(data.kept(c), 1), data.kept),
        Column("Average − dense", against_dense(data.average_difference, "{:+.2f}")),
        Column("Realised %", lambda c: f"{100 * c.record['realised']['realised_sparsity']:.1f}"),
        Column("MB/token", lambda c: f"{c.record['realised']['bytes_per_token'] / 1e6:.2f}"),
        Column("Perplexity", lambda c: number_text(c.record["perplexity"], 3), negative_perplexity),
        Column("Perplexity ÷ dense", against_dense(data.perplexity_ratio, "{:.3f}")),
    ]


def _main_table(data: TableData) -> str:
    columns = _columns(data)
    lines = [
        table_row(["Model", "Sparsity", "Method", *(column.title for column in columns)]),
        table_row(["---"] * 3 + ["---:"] * len(columns)),
    ]
    for model in data.models:
        dense_key = (model, "dense", 0.0)
        lines.append(table_row([model, "0", "dense", *_texts(data, columns, dense_key)]))
        for sparsity in data.sparsities:
            keys = [(model, method, sparsity) for method in data.methods]
            best = _best_texts([data.cells[key] for key in keys if key in data.cells], columns)
            for key in keys:
                texts = _texts(data, columns, key)
                bold = [
                    f"**{text}**" if text and text == mark else text
                    for text, mark in zip(texts, best, strict=True)
                ]
                lines.append(table_row([model, f"{100 * sparsity:g} %", key[1], *bold]))
    return "\n".join(lines)


def _texts(data: TableData, columns: list[Column], key: Key) -> list[str]:
    cell = data.cells.get(key)
    if cell is None:
        return [_absence(data, key), *[""] * (len(columns) - 1)]
    return [column.text(cell) for column in columns]


def _best_texts(block: list[MeasuredCell], columns: list[Column]) -> list[str | None]:
    """Text of the best value of a block, by column: all that print alike are marked."""
    best: list[str | None] = []
    for column in columns:
        merits = [(column.merit(cell), cell) for cell in block] if column.merit else []
        known = [(merit, cell) for merit, cell in merits if merit is not None]
        best.append(column.text(max(known, key=lambda pair: pair[0])[1]) if len(known) > 1 else None)
    return best


def _against_best_baseline(data: TableData) -> str:
    lines = [
        "## WiSparse against the best baseline",
        "",
        "The best baseline of a row is the one with the highest average, chosen on these very items: "
        "the comparison favours it.",
        "",
        table_row(
            ["Model", "Sparsity", "WiSparse", "Best baseline", "Its average", "Difference", "Perplexity ratio"]
        ),
        table_row(["---", "---", "---:", "---", "---:", "---:", "---:"]),
    ]
    for model in data.models:
        for sparsity in data.sparsities:
            ours, rival = data.cells.get((model, OURS, sparsity)), data.best_baseline(model, sparsity)
            start = [model, f"{100 * sparsity:g} %"]
            if ours is None or rival is None:
                lines.append(table_row([*start, NOT_MEASURED, "", "", "", ""]))
                continue
            lines.append(
                table_row(
                    [
                        *start,
                        number_text(ours.record["average"], 2),
                        rival.key[1],
                        number_text(rival.record["average"], 2),
                        interval_text(data.average_difference(ours, rival), "{:+.2f}"),
                        interval_text(data.perplexity_ratio(ours, rival), "{:.3f}"),
                    ]
                )
            )
    return "\n".join(lines)


def _absence(data: TableData, key: Key) -> str:
    maximum = data.unreachable.get(key)
    return NOT_MEASURED if maximum is None else f"out of reach (max {maximum:.3f})"
