"""Perplexity and accuracy against bytes a token, every method: the frontier as a table.

python -m wisparse.repro.tables frontier --records FOLDER --output results/frontier
"""

from __future__ import annotations

from collections.abc import Iterable

from .cells import MeasuredCell, method_rank
from .csv_rows import csv_text
from .frontier import REFERENCE, Comparison, FrontierData, search_budget, search_seconds
from .paired_bootstrap import RESAMPLES
from .text import (
    EMBEDDED_NOTE,
    NOT_MEASURED,
    commit_text,
    device_text,
    distinct,
    interval_text,
    table_row,
)

CSV_COLUMNS = (
    "model", "method", "sparsity", "seed", "realised_sparsity", "bytes_per_token", "perplexity",
    "dense_perplexity", "average", "search_seconds", "search_evaluations", "search_budget", "device",
)  # fmt: skip


def frontier_csv(data: FrontierData) -> str:
    """One row a cell; sparsities as shares, averages in percent, seconds of the whole plan."""
    return csv_text(CSV_COLUMNS, (_csv_row(data, *place, cell) for place, cell in data.cells.items()))


def _csv_row(
    data: FrontierData, model: str, method: str, sparsity: float, seed: int, cell: MeasuredCell
) -> dict[str, object]:
    record, dense = cell.record, data.dense(model)
    return {
        "model": model,
        "method": method,
        "sparsity": sparsity,
        "seed": seed,
        "realised_sparsity": f"{record['realised']['realised_sparsity']:.5f}",
        "bytes_per_token": f"{record['realised']['bytes_per_token']:.0f}",
        "perplexity": f"{record['perplexity']:.4f}",
        "dense_perplexity": "" if dense is None else f"{dense.record['perplexity']:.4f}",
        "average": "" if record["average"] is None else f"{record['average']:.3f}",
        "search_seconds": f"{search_seconds(record):.2f}",
        "search_evaluations": record["plan"]["provenance"]["evaluations"],
        "search_budget": search_budget(record),
        "device": record["model"]["device_name"],
    }


def frontier_markdown(data: FrontierData) -> str:
    """Each method against WiSparse at the same bytes, then every cell."""
    sections = [_header(data), "## At the bytes that WiSparse reads", _comparisons(data), "## Every cell"]
    return "\n\n".join([*sections, _cells(data)]) + "\n"


def comparisons(data: FrontierData) -> Iterable[Comparison]:
    """Comparisons of every method with WiSparse, in the order of the table."""
    for model, sparsity, method in data.groups:
        if method == REFERENCE:
            others = {other for of_model, _, other in data.groups if of_model == model} - {"dense", REFERENCE}
            for other in sorted(others, key=method_rank):
                if found := data.comparison(model, other, sparsity):
                    yield found


def _header(data: FrontierData) -> str:
    records = [cell.record for cell in data.cells.values()]
    protocols = distinct(records, lambda record: record["protocol"]["name"])
    lines = [
        f"Protocol: {protocols}. "
        f"Device: {distinct(records, device_text)}. Commit: {distinct(records, commit_text)}.",
        "Rise: perplexity minus that of the dense model. MB/token: weights read for a sparsely computed token.",
        "At the same bytes: between a method's two cells nearest to WiSparse's bytes, of the same seed, the "
        "logarithm of the rise and the outcome of every item are taken as linear in the bytes. Nothing is "
        "extrapolated.",
        f"Brackets: 95 % intervals from {RESAMPLES:,} resamples, paired by document (rise) and by item "
        "(average), of the mean over the seeds: other orders of the calibration files, other searches.",
        "Bridged: seeds without a cell of the method at that sparsity, taken between its cells 10 points away.",
        "Time: seconds of calibration and search as a share of WiSparse's, on the same device.",
    ]
    title = "# The frontier: what a token reads, and what it costs"
    return "\n".join([title, "", EMBEDDED_NOTE, "", *(f"- {line}" for line in lines)])


def _comparisons(data: FrontierData) -> str:
    titles = [
        "Model", "Sparsity", "Method", "WiSparse's budget", "Seeds", "MB/token", "Rise ÷ WiSparse's", "By seed",
        "Average − WiSparse's", "Time ÷ WiSparse's",
    ]  # fmt: skip
    lines = [table_row(titles), table_row(["---", "---:", "---", "---", *["---:"] * 6])]
    for found in comparisons(data):
        spread = f"{min(found.rise_share_by_seed):.2f} to {max(found.rise_share_by_seed):.2f}"
        lines.append(
            table_row(
                [
                    found.model,
                    f"{100 * found.sparsity:g} %",
                    found.method,
                    found.budget,
                    found.seeds_text,
                    f"{found.bytes_per_token / 1e6:.2f}",
                    interval_text(found.rise_share, "{:.2f}"),
                    spread if len(found.seeds) > 1 else "",
                    interval_text(found.average_difference, "{:+.2f}") or NOT_MEASURED,
                    "" if found.time_share is None else f"{found.time_share:.3f}",
                ]
            )
        )
    return "\n".join(lines)


def _cells(data: FrontierData) -> str:
    titles = ["Model", "Sparsity", "Method", "Seed", "Realised %", "MB/token", "Perplexity", "Rise", "Average"]
    lines = [table_row([*titles, "Seconds"]), table_row(["---", "---:", "---", *["---:"] * 7])]
    for (model, method, sparsity, seed), cell in data.cells.items():
        start = [model, f"{100 * sparsity:g} %", method, str(seed)]
        lines.append(table_row([*start, *_figures(cell, data.dense(model))]))
    return "\n".join(lines)


def _figures(cell: MeasuredCell, dense: MeasuredCell | None) -> list[str]:
    record, realised = cell.record, cell.record["realised"]
    return [
        f"{100 * realised['realised_sparsity']:.1f}",
        f"{realised['bytes_per_token'] / 1e6:.2f}",
        f"{record['perplexity']:.3f}",
        "" if dense is None else f"{record['perplexity'] - dense.record['perplexity']:.3f}",
        NOT_MEASURED if record["average"] is None else f"{record['average']:.2f}",
        f"{search_seconds(record):.1f}",
    ]
