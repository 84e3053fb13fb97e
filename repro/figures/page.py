"""The page of WiSparse's figures: what each shows, what it was measured on, and its most telling numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean

from ...method.projections import PROJECTIONS
from ..measured.cells import MeasuredCell
from ..measured.comparable import search_settings
from ..tables.csv_rows import Row, read_rows
from ..tables.text import (
    NOT_MEASURED,
    commit_text,
    device_text,
    distinct,
    headed,
    versions_text,
)
from .plots import mismatch
from .rows import RANDOM, FigureRecords

SOURCE = "Figures 2 to 6 of WiSparse, arXiv 2602.14452, measured anew: nothing is read off the paper's own."


def page(records: FigureRecords, folder: Path, names: list[str]) -> str:
    """Markdown with every figure of `names`; one without a CSV in `folder` is said to be not measured."""
    title = "# WiSparse's figures"
    sections = [headed(title, records.cells.values(), named=f"{title} on the embedded models"), SOURCE]
    settings = [f"- {title}: {_settings(cells)}" for title, cells in _groups(records)]
    sections.append("\n".join([*settings, *READING]))
    for name in names:
        sections.append(f"## {TITLES[name]}")
        if rows := read_rows(folder / f"{name}.csv"):
            sections.append(f"![{TITLES[name]}]({folder.name}/{name}.png)")
            sections.append("\n".join(f"- {line}" for line in FINDINGS[name](rows)))
        else:
            sections.append(f"{NOT_MEASURED.capitalize()}.")
    return "\n\n".join(section for section in sections if section) + "\n"


def _groups(records: FigureRecords) -> Iterator[tuple[str, list[MeasuredCell]]]:
    for title, suite in (("Figure 2", "channels"), ("Figure 3", "one_block"), ("Figures 5 and 6", "none")):
        if cells := records.under(suite):
            yield title, cells


def _settings(cells: list[MeasuredCell]) -> str:
    record, found = cells[0].record, [cell.record for cell in cells]
    calibration, method = record["calibration"], record["method"]["name"]
    parts = [
        f"calibration `{calibration['name']}`, {calibration['sequences']} × {calibration['length']} tokens",
        "" if method == "dense" else f"method `{method}`, search budget `{search_settings(record)}`",
        f"protocol `{record['protocol']['name']}`" if record["suite"]["name"] == "one_block" else "",
        f"seed {record['seed']}",
        distinct(found, device_text),
        f"commit {distinct(found, commit_text)}",
        distinct(found, versions_text),
    ]
    return "; ".join(part for part in parts if part) + "."


READING = (
    "- Figure 2: all calibration tokens, dense. Figure 3: the sparse block has |x| alone as its score and "
    "every projection at the same sparsity; bands are 95 % bootstrap intervals, paired by document. Figure 4: "
    "operations as the paper counts them (block linears at the sparsity, lm_head dense, attention left out); "
    "throughput from `results/speed.csv`, batch 1, a prompt of 5. Figures 5 and 6: what the plan asks for, "
    "attention and MLP weighted by matrix size; α has a meaning only where a projection is sparse.",
)
TITLES = {
    "figure2": "Figure 2: activations beside weights, one block",
    "figure3": "Figure 3: perplexity with one block alone sparse",
    "figure4": "Figure 4: operations and throughput against sparsity",
    "figure5": "Figure 5: learned sparsity by block",
    "figure6": "Figure 6: learned α by layer",
}


def _mismatch(rows: list[Row]) -> Iterator[str]:
    for (model, projection), mine in _grouped(rows, "model", "projection"):
        correlation, share = mismatch(mine)
        yield (
            f"{model}, block {mine[0]['block']}, {projection}: rank correlation {correlation:+.2f}; "
            f"{share:.0%} of the smaller half by E|x| are in the larger half by norm (independent: 50 %)."
        )


def _one_block(rows: list[Row]) -> Iterator[str]:
    for (model, sparsity), mine in _grouped(rows, "model", "sparsity"):
        most, least = (choose(mine, key=_ratio) for choose in (max, min))
        yield (
            f"{model}, {float(sparsity):.0%}: block {most['block']} costs most (perplexity "
            f"×{_ratio(most):.3f}), block {least['block']} least (×{_ratio(least):.3f}); "
            f"{mine[0]['documents']} documents."
        )


def _ratio(row: Row) -> float:
    return float(row["perplexity_ratio"])


def _cost(rows: list[Row]) -> Iterator[str]:
    models = {row["model"] for row in rows}
    for (model,), mine in _grouped(rows, "model"):
        if f"{model}{RANDOM}" in models:  # of the same size, and timed
            continue
        at_half = {row["sparsity"]: row["tflops_128_tokens"] for row in mine}
        operations = f"{float(at_half['0.0']):.3g} → {float(at_half['0.5']):.3g} TFLOPs for 128 tokens at 50 %"
        timed = [row for row in mine if row["status"] == "measured" and float(row["sparsity"]) > 0]
        speeds = ", ".join(
            f"{row['method']} {float(row['sparsity']):.0%} {float(row['tok_s']):.1f} tok/s "
            f"(×{float(row['speedup']):.2f})"
            for row in timed
        )
        devices = ", ".join(dict.fromkeys(row["device"] for row in timed))
        yield f"{model}: {operations}; " + (f"{devices}: {speeds}." if timed else f"throughput {NOT_MEASURED}.")


def _allocation(rows: list[Row]) -> Iterator[str]:
    parts = {"block_sparsity": "blocks", "attention": "attention", "mlp": "MLP"}
    for (model, sparsity), mine in _grouped(rows, "model", "sparsity"):
        shown = []
        for column, name in parts.items():
            shares = [100 * float(row[column]) for row in mine]
            shown.append(f"{name} {min(shares):.0f} to {max(shares):.0f} % (mean {fmean(shares):.0f})")
        yield f"{model} at {float(sparsity):.0%}: {', '.join(shown)}."


def _alpha(rows: list[Row]) -> Iterator[str]:
    for (model, sparsity), mine in _grouped(rows, "model", "sparsity"):
        found = {name: [float(row[name]) for row in mine if row[name]] for name in PROJECTIONS}
        means = ", ".join(
            f"{name} {fmean(alphas):.2f}" if alphas else f"{name} dense" for name, alphas in found.items()
        )
        yield f"{model} at {float(sparsity):.0%}, mean over the blocks where it is sparse: {means}."


FINDINGS: dict[str, Callable[[list[Row]], Iterator[str]]] = {
    "figure2": _mismatch,
    "figure3": _one_block,
    "figure4": _cost,
    "figure5": _allocation,
    "figure6": _alpha,
}


def _grouped(rows: list[Row], *columns: str) -> Iterator[tuple[tuple[str, ...], list[Row]]]:
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in columns), []).append(row)
    yield from groups.items()
