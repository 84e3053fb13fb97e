"""Pruned weights beside sparse activations, as far as measured: tables for docs/quantisation.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...configuration import REPOSITORY
from ...measured.cells import every_cell, method_rank
from ...measured.frontier import read_frontier
from ...measured.pruned_cells import PRUNED
from ...tables.csv_rows import read_rows
from ...tables.table import is_number
from ...tables.text import NOT_MEASURED, interval_text, table_row
from .real import REAL, SETTINGS, mean_shown

RECORDS = REPOSITORY / "results" / "real" / "records" / "pruned_bfloat16.tar.xz"
FRONTIER = (
    REPOSITORY / "results" / "records" / "frontier",
    REPOSITORY / "results" / "records" / "frontier_pruned",
)
ACTIVATIONS = ("teal", "equal_loss")
"""Methods on activations beside those on weights."""
SPARSITIES = (0.4, 0.5, 0.6)
PROTOCOLS = ("all", "half")
"""Pruned weights serve every token, as TEAL does under `all`."""
HALF = 2
"""Table 1 is of float32, whose weights take twice the bytes of bfloat16."""


def pruned_table(records: Path = RECORDS, table: Path = REAL) -> str:
    """Bytes and WikiText-2's perplexity of every pruned model, then of TEAL at the same nominal sparsities."""
    lines = [table_row(["weights", "activations", "MB/token", "perplexity"]), "|---|---|---:|---:|"]
    cells = list(every_cell([records])) if records.exists() else []
    for cell in sorted(cells, key=lambda cell: _weights(cell.record["quantisation"])):
        record = cell.record
        read = record["realised"]["bytes_per_token"] / 1e6
        lines.append(
            table_row([_weights(record["quantisation"]), "dense", f"{read:.0f}", f"{record['perplexity']:.2f}"])
        )
    for protocol in PROTOCOLS:
        wanted = SETTINGS | {"protocol": protocol, "suite": "wikitext", "method": "teal"}
        teal = [row for row in read_rows(table) if wanted.items() <= row.items()]
        for sparsity in SPARSITIES:
            read, perplexity = (
                mean_shown(teal, sparsity, part, 2) for part in ("bytes_per_token", "perplexity")
            )
            shown = f"{float(read) / HALF / 1e6:.0f}" if is_number(read) else NOT_MEASURED
            lines.append(table_row(["its own", f"`teal` {sparsity:.0%}, `{protocol}`", shown, perplexity]))
    return "\n".join(lines)


def pruned_small_table(records: tuple[Path, ...] = FRONTIER) -> str:
    """Rises of perplexity on the small models as a share of WiSparse's, at the bytes that it reads."""
    data = read_frontier(*records)
    pruned = sorted({method for _, _, method in data.groups if method.startswith(PRUNED)}, key=method_rank)
    methods = (*pruned, *ACTIVATIONS)
    lines = [table_row(["model", "MB/token", *(f"`{method}`" for method in methods)])]
    lines.append("|---|---:|" + "---:|" * len(methods))
    for model in dict.fromkeys(model for model, *_ in data.groups):
        for sparsity in SPARSITIES:
            found = {method: data.comparison(model, method, sparsity) for method in methods}
            if not any(found[method] for method in pruned):
                continue
            read = next(one.bytes_per_token for method in pruned if (one := found[method]))
            shown = [interval_text(one.rise_share, "{:.2f}") if one else NOT_MEASURED for one in found.values()]
            lines.append(table_row([model, f"{read / 1e6:.1f}", *shown]))
    return "\n".join(lines)


def _weights(pruned: dict[str, Any]) -> str:
    """How weights are pruned, which their name alone does not say of settings that have changed."""
    how, _, _ = pruned["description"].partition(", with")
    return f"`{pruned['name']}`" + (f": {how}" if how else "")
