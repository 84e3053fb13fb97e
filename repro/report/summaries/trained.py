"""Models with true zeros for docs/field.md: what is lost at half, and how fast predicted neurons are."""

from __future__ import annotations

from itertools import zip_longest
from math import prod
from pathlib import Path

from ....kernels.bench.parts.model_shapes import shape_of
from ...configuration import REPOSITORY
from ...tables.csv_rows import Row, read_rows
from ...tables.speed.step_rows import newest_runs
from ...tables.text import NOT_MEASURED, table_row

MODELS = REPOSITORY / "results" / "relu" / "models.csv"
REAL_MODELS = REPOSITORY / "results" / "real" / "relu.csv"
PREDICTED = REPOSITORY / "results" / "predicted_neurons.csv"
CONTROL = "-dense"
"""End of the name of the model that the others of a table are compared with."""
LEAST, HALF, MOST = 0.45, 0.5, 0.55
"""Realised sparsities around the one that is shown."""
MODEL_HEADS = (
    "model", "zeros", "dense ÷ control", "suite", "method", "not read", "MB/token",
    "perplexity ÷ dense control",
)  # fmt: skip
SPEED_HEADS = (
    "device", "shapes", "blocks", "rows of gate", "of up and down", "of these with zeros known", "ms",
    "over dense", "over known zeros", "bytes allow", "signs alone, µs a block", "of a dense block",
)  # fmt: skip


def trained_table(path: Path = MODELS) -> str:
    """A row for every method on a trained model that leaves about half of the weights of a suite unread.

    A model without such a cell has the one nearest to it, or says that none was measured. The last column
    compares with the control under no method, on the same suite.
    """
    rows = read_rows(path)
    of_control = [row for row in rows if row["model"].endswith(CONTROL) and row["method"] == "dense"]
    dense = {row["suite"]: float(row["perplexity"]) for row in of_control}
    lines = [table_row(MODEL_HEADS), "|---|---:|---:|---|---|---:|---:|---:|"]
    for model, suite in dict.fromkeys((row["model"], row["suite"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["suite"]) == (model, suite)]
        for row in _shown(mine):
            found = [NOT_MEASURED, "", "", ""]
            if row["method"]:
                found = [
                    f"`{row['method']}`",
                    f"{float(row['realised_sparsity']):.1%}",
                    f"{float(row['bytes_per_token']) / 1e6:.1f}",
                    f"{float(row['perplexity']) / dense[suite]:.3f}" if suite in dense else NOT_MEASURED,
                ]
            about = [f"`{model}`", f"{float(row['zeros']):.1%}", f"{float(row['over_control']):.3f}", suite]
            lines.append(table_row([*about, *found]))
    return "\n".join(lines)


def _shown(rows: list[Row]) -> list[Row]:
    """Rows of a model on a suite around half; else the one nearest to it under a method, else the first."""
    around = [row for row in rows if row["method"] and LEAST <= float(row["realised_sparsity"]) <= MOST]
    sparse = [row for row in rows if row["method"] and row["method"] != "dense"]
    return around or [min(sparse or rows, key=lambda row: abs(float(row["realised_sparsity"] or 0.0) - HALF))]


def predicted_table(path: Path = PREDICTED) -> str:
    """A row for every share of neurons that signs leave, over the dense step of the same run.

    Over known zeros: beside the step behind it, that computes gate whole; bytes allow the ratio of both steps'
    bytes. The last columns: what counting signs adds to a step that reads nothing of the feed-forward parts,
    beside the share of the dense step that a block has by its weights.
    """
    runs = newest_runs(read_rows(path))
    lines = [table_row(SPEED_HEADS), "|---|---|" + "---:|" * (len(SPEED_HEADS) - 2)]
    for run, rows in runs.items():
        alone = {row["kind"]: float(row["ms"]) for row in rows if row["kind"] not in ("predicted", "known")}
        blocks = int(run[2])
        signs = (alone["signs"] - alone["nothing"]) / blocks
        cost = [f"{1e3 * signs:.1f}", f"{signs / (alone['dense'] * _share_of_a_block(run[1], blocks)):.1%}"]
        for row, behind in zip_longest(rows, rows[1:]):
            if row["kind"] == "predicted":
                known = behind if behind and behind["kind"] == "known" else None
                ms, read = float(row["ms"]), [*map(float, (row["computed"], row["active"]))]
                shares = [f"{share:.0%}" for share in (*read, float((known or row)["active"]))]
                gains = [f"{alone['dense'] / ms:.2f}×", NOT_MEASURED, NOT_MEASURED]
                if known:
                    more = step_bytes(run[1], blocks, 1.0, float(known["active"]))
                    allowed = more / step_bytes(run[1], blocks, *read, signs=True)
                    gains[1:] = [f"{float(known['ms']) / ms:.2f}×", f"{allowed:.2f}×"]
                lines.append(table_row([*run, *shares, f"{ms:.2f}", *gains, *cost]))
    return "\n".join(lines)


def step_bytes(name: str, blocks: int, computed: float, active: float, signs: bool = False) -> float:
    """Bytes of a step's weights in bfloat16 with so many neurons computed and active, and of packed signs."""
    shape = shape_of(name, blocks)
    sizes = {projection: prod(sides) for projection, sides in shape.projection_shapes().items()}
    neurons = computed * sizes["gate"] + active * (sizes["up"] + sizes["down"])
    packed = sizes["gate"] / 16 if signs else 0.0  # a bit for a weight of two bytes
    attention = sum(sizes[projection] for projection in ("q", "k", "v", "o"))
    return 2.0 * (blocks * (attention + neurons + packed) + shape.vocabulary * shape.hidden)


def _share_of_a_block(name: str, blocks: int) -> float:
    """Share of a decoder's weights that one of so many blocks holds, beside lm_head's."""
    shape = shape_of(name, blocks)
    block = sum(map(prod, shape.projection_shapes().values()))
    return block / (blocks * block + shape.vocabulary * shape.hidden)
