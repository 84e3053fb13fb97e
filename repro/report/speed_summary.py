"""The README's table of decode speed, from the records of results/speed.csv."""

from __future__ import annotations

from typing import Any

from ..configuration import REPOSITORY
from ..tables.cells import method_rank
from ..tables.speed_table import ENGINE_DENSE, SpeedData, device_of, fastest_compiled, read_speed, setting_of
from ..tables.text import NOT_MEASURED, table_row

RECORDS = REPOSITORY / "results" / "records" / "speed"
DEVICE, DTYPE = "NVIDIA H200", "bfloat16"
DENSE, METHOD, SPARSITY, PROMPT = "dense", "teal_uniform", 0.5, 5
"""The methods shown at every sparsity, and the one at which everything else is, behind this short prompt."""
HEADS = (
    "", "sparsity", "engine, dense, tok/s", "engine, sparse",
    "over dense", "over `torch.compile`", "byte limit",
)  # fmt: skip


def speed_summary(data: SpeedData | None = None) -> str:
    """Every model by sparsity, then methods, contexts and batches at half sparsity, of one device and dtype."""
    data = data or read_speed(RECORDS)
    compiled = fastest_compiled(data)
    records = [cell.record for cell in data.sorted_cells()]
    records = [
        record for record in records if device_of(record) == DEVICE and record["model"]["dtype"] == DTYPE
    ]
    first = [record for record in records if _is_short(record) and record["method"]["name"] in (DENSE, METHOD)]
    others = [record for record in records if record["sparsity"] == SPARSITY and record not in first]
    lines = [table_row(HEADS), "|---|---:|" + "---:|" * 5]
    for record in [*sorted(first, key=_by_sparsity), *sorted(others, key=_by_setting)]:
        known = compiled.get(setting_of(record))
        lines.append(table_row(_shown(record, known.tok_s if known else None)))
    return "\n".join(lines)


def _is_short(record: dict[str, Any]) -> bool:
    return (record["latency"]["batch"], record["latency"]["prompt"]) == (1, PROMPT)


def _by_sparsity(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["model"]["name"], record["sparsity"]


def _by_setting(record: dict[str, Any]) -> tuple[Any, ...]:
    latency = record["latency"]
    rank = method_rank(record["method"]["name"])
    return record["model"]["name"], latency["batch"], latency["prompt"], *rank


def _shown(record: dict[str, Any], compiled: float | None) -> list[str]:
    """A row: tokens a second dense and sparse, and over what each baseline reached."""
    latency = record["latency"]
    dense, sparse = latency["timings"][ENGINE_DENSE]["tok_s"], latency["tok_s"]
    return [
        _named(record),
        f"{100 * record['sparsity']:g} %",
        f"{dense:.0f}",
        f"{sparse:.0f}",
        f"{sparse / dense:.2f}×",
        NOT_MEASURED if compiled is None else f"{sparse / compiled:.2f}×",
        f"{latency['byte_limit_speedup']:.2f}×",
    ]


def _named(record: dict[str, Any]) -> str:
    latency = record["latency"]
    parts = [record["model"]["name"].removesuffix("-random"), record["method"]["name"]]
    if latency["batch"] > 1:
        parts.append(f"batch of {latency['batch']}")
    if latency["prompt"] > PROMPT:
        parts.append(f"behind {latency['prompt']:,} tokens")
    return ", ".join(parts)
