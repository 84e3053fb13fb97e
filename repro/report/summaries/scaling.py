"""What sparsity costs in three sizes, for docs/method.md."""

from __future__ import annotations

from pathlib import Path

from ...configuration import REPOSITORY
from ...tables.csv_rows import read_rows
from ...tables.text import NOT_MEASURED, table_row
from ...train.scaling_table import SCALING

SIZES = REPOSITORY / "results" / "scaling.csv"
SHOWN_SPARSITIES = ("0.5", "0.6")


def scaling_table(path: Path = SIZES) -> str:
    """A row for every sparsity and method: its rise in every size, and the largest's over the smallest's."""
    rows = read_rows(path)
    if not rows:
        return f"*{NOT_MEASURED.capitalize()}.*"
    form = {column.name: column for column in SCALING.columns(())}
    sizes = {row["model"]: f"{int(row['parameters']) / 1e6:.1f} M" for row in rows}
    lines = [table_row(["not read", "method", *sizes.values(), "largest ÷ smallest"])]
    lines.append("|---:|---|" + "---:|" * (len(sizes) + 1))
    for sparsity in SHOWN_SPARSITIES:
        mine = [row for row in rows if row["sparsity"] == sparsity]
        for method in dict.fromkeys(row["method"] for row in mine):
            found = {row["model"]: row for row in mine if row["method"] == method}
            rises = [form["relative_rise"].shown(found[model]) for model in sizes]
            last = form["over_smallest"].shown(found[list(sizes)[-1]])
            lines.append(table_row([f"{float(sparsity):.0%}", f"`{method}`", *rises, last]))
    return "\n".join(
        [*lines, "", f"![rise of perplexity against parameters](../{path.parent.name}/scaling.png)"]
    )
