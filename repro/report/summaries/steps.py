"""Whole decode steps by bits, sparsity and batch, from results/*steps.csv, for the pages of docs."""

from __future__ import annotations

from pathlib import Path

from ...configuration import REPOSITORY
from ...tables.csv_rows import Row, read_rows
from ...tables.speed.step_rows import StepPlace, fastest_steps
from ...tables.text import NOT_MEASURED, table_row

STEPS = REPOSITORY / "results" / "steps.csv"
SHAPE, DTYPE, CONTEXT = "llama3.1-8b", "bfloat16", 128
NAMES = {16: "16 bits", 8: "int8", 4: "int4"}
"""Formats by their bits."""
CPU_TABLE = REPOSITORY / "results" / "cpu_steps.csv"
CPU_HEADS = (
    "shapes", "built for", "weights", "activations", "llama.cpp, ms", "engine, dense, ms", "50 % sparse, ms",
    "dense over llama.cpp", "50 % over llama.cpp", "dense, share of bandwidth",
)  # fmt: skip
ENGINE, HALF = "engine", 0.5


def steps_by_sparsity() -> str:
    """Tokens a second of one row, one line for shapes and format, and what share of the bandwidth that is."""
    rows = {
        (place.setting.shape, *place[1:]): row
        for place, row in fastest_steps(read_rows(STEPS)).items()
        if place.setting[1:] == (DTYPE, CONTEXT, 1)
    }
    sparsities = sorted({sparsity for _, _, sparsity in rows})
    lines = [
        table_row(["shapes", "weights", "lm_head", *(f"{sparsity:.0%}" for sparsity in sparsities)]),
        table_row(["---", "---", "---", *["---:"] * len(sparsities)]),
    ]
    for shape, bits in sorted({key[:2] for key in rows}, key=lambda key: (key[0] != SHAPE, key[0], -key[1])):
        mine = [rows.get((shape, bits, sparsity)) for sparsity in sparsities]
        known = next(row for row in mine if row)
        lines.append(table_row([shape, _format(known), f"{known['head_bits']} bits", *map(_speed, mine)]))
    return "\n".join(lines)


def steps_of_others() -> str:
    """Tokens a second of one row, dense and at 50 %, with other activations and behind other contexts."""
    rows = fastest_steps(read_rows(STEPS))
    settings = {
        place.setting for place in rows if place.setting.batch == 1 and place.setting[1:3] != (DTYPE, CONTEXT)
    }
    bits = sorted({place.bits for place in rows}, reverse=True)
    heads = [f"{NAMES[one]}, {which}" for one in bits for which in ("dense", "50 %")]
    lines = [
        table_row(["shapes", "activations", "context", *heads]),
        table_row(["---", "---", "---:", *["---:"] * len(heads)]),
    ]
    for setting in sorted(settings):
        places = (StepPlace(setting, one, sparsity) for one in bits for sparsity in (0.0, 0.5))
        shown = [_speed(rows.get(place)) for place in places]
        lines.append(table_row([setting.shape, setting.dtype, f"{setting.context}", *shown]))
    return "\n".join(lines)


def steps_by_batch() -> str:
    """Tokens a second of several rows in 16 bits, dense, and at each sparsity how many times that."""
    rows = fastest_steps(read_rows(STEPS))
    mine = {place: row for place, row in rows.items() if place.setting.batch > 1 and place.bits == 16}
    if not mine:
        return NOT_MEASURED
    sparsities = sorted({place.sparsity for place in mine} - {0.0})
    heads = (f"{sparsity:.0%} over dense" for sparsity in sparsities)
    lines = [
        table_row(["shapes", "rows", "dense, tok/s", *heads]),
        table_row(["---", "---:", "---:", *["---:"] * len(sparsities)]),
    ]
    for setting in sorted({place.setting for place in mine}):
        dense = mine.get(StepPlace(setting, 16, 0.0))
        ratios = (_over(dense, mine.get(StepPlace(setting, 16, sparsity))) for sparsity in sparsities)
        rate = NOT_MEASURED if dense is None else f"{float(dense['tok_s']):,.0f}"
        lines.append(table_row([setting.shape, f"{setting.batch}", rate, *ratios]))
    return "\n".join(lines)


def _over(dense: Row | None, sparse: Row | None) -> str:
    """Speed-up of a step; where the engine computes this batch densely, that is said."""
    if dense is None or sparse is None:
        return NOT_MEASURED
    computed = "" if float(sparse["unread"]) else ", computed densely"
    return f"{float(dense['ms']) / float(sparse['ms']):.2f}×{computed}"


def _format(row: Row) -> str:
    return NAMES[int(row["bits"])] + (f", groups of {row['group']}" if row["group"] else "")


def _speed(row: Row | None) -> str:
    if row is None:
        return NOT_MEASURED
    return f"{float(row['tok_s']):.0f} ({float(row['gb_s']) / float(row['read_gb_s']):.0%})"


def cpu_table(path: Path = CPU_TABLE) -> str:
    """Milliseconds of a token by shapes, instructions, bits and type of activations."""
    rows = read_rows(path)
    lines = [table_row(CPU_HEADS), "|---" * 4 + "|---:" * (len(CPU_HEADS) - 4) + "|"]
    for dense in rows:
        if dense["decoder"] != ENGINE or float(dense["sparsity"]):
            continue
        beside = [row for row in rows if _cpu_setting(row) == _cpu_setting(dense)]
        half = [row for row in beside if _is_half(row, dense["dtype"])]
        llama = [row for row in beside if row["decoder"] != ENGINE]
        ms = [_milliseconds(found) for found in (llama, [dense], half)]
        lines.append(
            table_row(
                [
                    dense["shape"],
                    dense["instructions"],
                    _cpu_weights(dense, llama),
                    dense["dtype"],
                    *(NOT_MEASURED if value is None else f"{value:.2f}" for value in ms),
                    *(_ratio(ms[0], value) for value in ms[1:]),
                    f"{float(dense['gb_s']) / float(dense['read_gb_s']):.0%}",
                ]
            )
        )
    return "\n".join(lines)


def _cpu_setting(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in ("device", "threads", "instructions", "shape", "bits", "context"))


def _is_half(row: Row, dtype: str) -> bool:
    return row["decoder"] == ENGINE and row["dtype"] == dtype and float(row["sparsity"]) == HALF


def _milliseconds(found: list[Row]) -> float | None:
    return float(found[0]["ms"]) if found else None


def _cpu_weights(dense: Row, llama: list[Row]) -> str:
    if dense["bits"] == "16":
        return dense["dtype"]
    return f"int{dense['bits']}" + "".join(f", `{row['decoder'].split()[-1]}`" for row in llama)


def _ratio(before: float | None, after: float | None) -> str:
    return "" if before is None or after is None else f"{before / after:.2f}×"
