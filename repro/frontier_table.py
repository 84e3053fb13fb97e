"""Perplexity and accuracy against bytes a token, every method: the table and the plot of the frontier.

python -m wisparse.repro.tables frontier --records FOLDER --output results/frontier
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..method.errors import UserError
from .records import RECORD, RecordError, load_items, load_record
from .table_data import MeasuredCell, method_rank

CSV_COLUMNS = (
    "model", "method", "sparsity", "seed", "realised_sparsity", "bytes_per_token", "perplexity",
    "dense_perplexity", "average", "search_seconds", "search_evaluations", "search_budget",
)  # fmt: skip
REFERENCE = "wisparse"


@dataclass(frozen=True)
class FrontierData:
    """Records with a perplexity, by model, sparsity, method and seed."""

    cells: dict[tuple[Any, ...], MeasuredCell]

    def perplexity(self, model: str, method: str, sparsity: float) -> float | None:
        """Of the first seed that was measured."""
        for cell in self.cells.values():
            record = cell.record
            if (record["model"]["name"], record["method"]["name"], record["sparsity"]) == (
                model,
                method,
                sparsity,
            ):
                return record["perplexity"]
        return None


def read_frontier(folder: Path) -> FrontierData:
    """Read every record with a perplexity below a folder; all must be on the same text under the same protocol.

    Raises UserError when there is none, when one is damaged, or when they are not.
    """
    cells: dict[tuple[Any, ...], MeasuredCell] = {}
    try:
        for path in sorted(folder.rglob(RECORD)):
            record = load_record(path.parent)
            if record["perplexity"] is not None:
                cells[_order(record)] = MeasuredCell(record, load_items(path.parent), path.parent)
    except RecordError as error:
        raise UserError(f"{error}; delete that folder, or compute the cell again with force=true") from error
    if not cells:
        raise UserError(f"{folder} holds no record with a perplexity")
    texts: dict[str, tuple[Any, ...]] = {}
    for cell in cells.values():
        record = cell.record
        text = (record["n_documents"], record["n_tokens"], record["protocol"]["name"])
        if texts.setdefault(record["model"]["name"], text) != text:
            raise UserError(f"{cell.folder.name} is on another text or under another protocol than the others")
    return FrontierData(dict(sorted(cells.items())))


def _order(record: dict[str, Any]) -> tuple[Any, ...]:
    rank = method_rank(record["method"]["name"])
    return (record["model"]["name"], record["sparsity"], *rank, record["seed"])


def frontier_csv(data: FrontierData) -> str:
    """One row a cell; sparsities as shares, averages in percent, seconds of the whole plan."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for cell in data.cells.values():
        record, provenance = cell.record, cell.record["plan"]["provenance"]
        dense = data.perplexity(record["model"]["name"], "dense", 0.0)
        writer.writerow(
            {
                "model": record["model"]["name"],
                "method": record["method"]["name"],
                "sparsity": record["sparsity"],
                "seed": record["seed"],
                "realised_sparsity": f"{record['realised']['realised_sparsity']:.5f}",
                "bytes_per_token": f"{record['realised']['bytes_per_token']:.0f}",
                "perplexity": f"{record['perplexity']:.4f}",
                "dense_perplexity": "" if dense is None else f"{dense:.4f}",
                "average": "" if record["average"] is None else f"{record['average']:.3f}",
                "search_seconds": f"{sum(record['plan']['seconds_by_stage'].values()):.2f}",
                "search_evaluations": provenance["evaluations"],
                "search_budget": record["config"]["search"]["name"],
            }
        )
    return text.getvalue()


HEADER = """\
# The frontier: what a token reads, and what it costs

**Embedded models of 8 to 11 million parameters, not 7-8B results.** Rise: perplexity minus that of the dense
model, and its share of WiSparse's at the same nominal sparsity (search budget in the csv; not the paper's).
MB/token: weights read for a sparse token. One seed. Average: over the six tasks, where it was measured."""


def frontier_markdown(data: FrontierData) -> str:
    """One row a cell with its rise in perplexity beside WiSparse's."""
    lines = [
        "| Model | Sparsity | Method | Realised % | MB/token | Perplexity | Rise | of WiSparse's | Average |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for cell in data.cells.values():
        record = cell.record
        model, sparsity, method = record["model"]["name"], record["sparsity"], record["method"]["name"]
        dense, reference = data.perplexity(model, "dense", 0.0), data.perplexity(model, REFERENCE, sparsity)
        rise = None if dense is None else record["perplexity"] - dense
        share = None if rise is None or reference is None else rise / (reference - dense)
        average = "not measured" if record["average"] is None else f"{record['average']:.2f}"
        shown = [
            model, f"{100 * sparsity:g} %", method, f"{100 * record['realised']['realised_sparsity']:.1f}",
            f"{record['realised']['bytes_per_token'] / 1e6:.2f}", f"{record['perplexity']:.3f}",
            "" if rise is None else f"{rise:.3f}", "" if share is None else f"{share:.2f}", average,
        ]  # fmt: skip
        lines.append("| " + " | ".join(shown) + " |")
    return f"{HEADER}\n\n" + "\n".join(lines) + "\n"
