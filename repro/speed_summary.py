"""The README's tables of decode speed, from results/speed.csv."""

from __future__ import annotations

from collections.abc import Iterable

from .configuration import REPOSITORY
from .csv_rows import Row, read_rows
from .table_data import method_rank
from .table_text import NOT_MEASURED, table_row

TABLE = REPOSITORY / "results" / "speed.csv"
DEVICE = "NVIDIA H200"
DENSE, METHOD, SPARSITY, PROMPT = "dense", "teal_uniform", 0.5, 5
"""The methods shown at every sparsity, and the one at which everything else is, behind this short prompt."""


Cell = tuple[str, str, float, int, int]
"""Model, method, sparsity, batch and prompt."""


class SpeedRows:
    """Speeds of one device in one dtype, one row a cell, each with its baselines."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.cells: dict[Cell, dict[str, Row]] = {}
        for row in rows:
            key = (row["model"], row["method"], float(row["sparsity"]), int(row["batch"]), int(row["prompt"]))
            self.cells.setdefault(key, {})[row["baseline"]] = row

    def compiled(self, model: str, batch: int, prompt: int) -> float | None:
        """The fastest `torch.compile` of a setting, of whichever process timed it, in tokens a second."""
        rates = [
            float(baselines["torch.compile"]["baseline_tok_s"])
            for (name, _, _, rows, length), baselines in self.cells.items()
            if (name, rows, length) == (model, batch, prompt) and "torch.compile" in baselines
        ]
        return max(rates, default=None)

    def shown(self, cell: Cell) -> list[str]:
        """Tokens a second dense and sparse, and over the baselines; as texts."""
        row = self.cells[cell]["engine-dense"]
        model, _, _, batch, prompt = cell
        dense, sparse, compiled = (
            float(row["baseline_tok_s"]),
            float(row["tok_s"]),
            self.compiled(model, batch, prompt),
        )
        over = NOT_MEASURED if compiled is None else f"{sparse / compiled:.2f}×"
        limit = f"{float(row['byte_limit_speedup']):.2f}×"
        return [f"{dense:.0f}", f"{sparse:.0f}", f"{sparse / dense:.2f}×", over, limit]


def speed_summary() -> str:
    """Every model by sparsity, then methods, contexts and batches at half sparsity."""
    rows = [row for row in read_rows(TABLE) if row["device"] == DEVICE and row["dtype"] == "bfloat16"]
    speeds = SpeedRows(rows)
    models = list(dict.fromkeys(row["model"] for row in rows))
    heads = ["", "sparsity", "engine, dense, tok/s", "engine, sparse"]
    heads += ["over dense", "over `torch.compile`", "byte limit"]
    lines = [table_row(heads), "|---|---:|" + "---:|" * 5]
    short = [cell for cell in speeds.cells if cell[1] in (DENSE, METHOD) and cell[3:] == (1, PROMPT)]
    others = [cell for cell in speeds.cells if cell[2] == SPARSITY and cell not in short]
    others.sort(key=lambda cell: (models.index(cell[0]), *cell[3:], *method_rank(cell[1])))
    for cell in [*sorted(short, key=lambda cell: (models.index(cell[0]), cell[2])), *others]:
        lines.append(table_row([_named(*cell), f"{100 * cell[2]:g} %", *speeds.shown(cell)]))
    return "\n".join(lines)


def _named(model: str, method: str, _: float, batch: int, prompt: int) -> str:
    parts = [model.removesuffix("-random"), method]
    if batch > 1:
        parts.append(f"batch of {batch}")
    if prompt > PROMPT:
        parts.append(f"behind {prompt:,} tokens")
    return ", ".join(parts)
