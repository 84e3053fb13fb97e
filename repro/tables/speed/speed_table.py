"""Decode speed as text: the Markdown that people read and the CSV that programs read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...record_facts import hardware, has_random_weights
from ..table import PERCENT, PERCENT_1, Column, Table, number
from ..text import NOT_MEASURED, in_order, model_lines, table_row
from .speed_data import (
    EAGER,
    ENGINE_DENSE,
    OWN_WEIGHTS,
    Compiled,
    PlainPyTorch,
    SpeedData,
    baselines,
    plain_pytorch,
    read_speed,
    setting_of,
    weights_of,
)


@dataclass(frozen=True)
class SpeedEntry:
    """A cell against one of its baselines: name, what exactly it was, tokens a second."""

    record: dict[str, Any]
    baseline: str
    mode: str
    baseline_tok_s: float

    @property
    def latency(self) -> dict[str, Any]:
        """What was timed."""
        return self.record["latency"]

    @property
    def traffic(self) -> dict[str, Any]:
        """What a decode step left out, and bytes."""
        return self.latency["traffic"]

    @property
    def measured(self) -> dict[str, Any]:
        """Timing of the plan, or of the engine's dense path for a dense cell."""
        return self.latency["timings"].get("engine-sparse", self.latency["timings"][ENGINE_DENSE])


def entries(data: SpeedData) -> Iterator[SpeedEntry]:
    """A cell and baseline each."""
    for cell in data.sorted_cells():
        for name, mode, timing in baselines(cell.record["latency"]):
            yield SpeedEntry(cell.record, name, mode, timing["tok_s"])


def columns(_: Sequence[str]) -> list[Column[SpeedEntry]]:
    """Columns in the order of the CSV; rates in tokens a second."""
    return [
        Column("device", "Device", lambda entry: hardware(entry.record["model"])),
        Column("model", "Model", lambda entry: entry.record["model"]["name"]),
        Column("method", "Method", lambda entry: entry.record["method"]["name"]),
        Column("sparsity", "Sparsity", lambda entry: entry.record["sparsity"], form=PERCENT),
        Column("realised_sparsity", "Realised", lambda entry: entry.traffic["realised_sparsity"], 5, PERCENT_1),
        Column("batch", "Batch", lambda entry: entry.latency["batch"]),
        Column("prompt", "Prompt", lambda entry: entry.latency["prompt"]),
        Column("new_tokens", "", lambda entry: entry.latency["new_tokens"]),
        Column("dtype", "", lambda entry: entry.record["model"]["dtype"]),
        Column("quantisation", "Weights", lambda entry: weights_of(entry.record) or OWN_WEIGHTS),
        Column("tok_s", "tok/s", lambda entry: entry.latency["tok_s"], 3, number(1)),
        Column("baseline", "Against", lambda entry: entry.baseline),
        Column("baseline_tok_s", "Its tok/s", lambda entry: entry.baseline_tok_s, 3, number(1)),
        Column("speedup", "Speed-up", lambda entry: entry.latency["tok_s"] / entry.baseline_tok_s, 4,
               number(2, end="×")),
        Column("byte_limit_speedup", "Byte limit", lambda entry: entry.latency["byte_limit_speedup"], 4,
               number(2, end="×")),
        Column("bytes_per_token", "", lambda entry: entry.traffic["bytes_per_token"], 0),
        Column("dense_bytes_per_token", "", lambda entry: entry.traffic["dense_bytes_per_token"], 0),
        Column("bandwidth_gb_s", "GB/s", lambda entry: entry.latency["bandwidth_reached"] / 1e9, 3, number(1)),
        Column("share_of_bandwidth", "Of peak", lambda entry: entry.latency["share_of_bandwidth"], 4, PERCENT),
        Column("prefill_ms", "", lambda entry: 1000 * entry.measured["prefill_seconds"], 3),
        Column("baseline_mode", "", lambda entry: entry.mode),
    ]  # fmt: skip


PAGE_COLUMNS = (
    "Model", "dtype", "Batch", "Prompt", "Sparsity", "Method", "Realised %", "tok/s dense", "tok/s sparse",
    "± %", "Speed-up", "over torch.compile", "over compiled-decoder", "over the faster", "over eager",
    "Byte limit", "TFLOPs/128", "MB/token", "GB/s", "of peak %", "Prefill ms", "Commit",
)  # fmt: skip


def speed_markdown(data: SpeedData) -> str:
    """Speed as the paper reports it (tok/s dense, sparse, speed-up, TFLOPs for 128 tokens), and the bytes."""
    sections, plain = [], plain_pytorch(data)
    for device in dict.fromkeys(hardware(cell.record["model"]) for cell in data.sorted_cells()):
        cells = [cell for cell in data.sorted_cells() if hardware(cell.record["model"]) == device]
        rows = [_row(cell.record, plain[setting_of(cell.record)]) for cell in cells]
        table = [
            table_row(PAGE_COLUMNS),
            "| --- | --- |" + " ---: |" * 3 + " --- |" + " ---: |" * (len(PAGE_COLUMNS) - 6),
            *map(table_row, rows),
        ]
        sections.append("\n".join([f"## {device}", "", *_notes([cell.record for cell in cells]), "", *table]))
    return "\n\n".join([HEADER, *sections]) + "\n"


HEADER = """\
# Decode speed

- tok/s dense and Speed-up: the same engine without a plan, timed in turn with the plan in one process.
- Over torch.compile: the fastest of its measured modes, which is named, on transformers with a static cache.
  Over compiled-decoder: a compact decoder in plain PyTorch (q+k+v in one product, gate+up in one, a static
  cache, torch.compile with CUDA graphs and coordinate-descent tuning). Over the faster: of these two, where
  both were measured. Baselines are timed once a process, behind the engine. *: timed in another process than
  the row, or for another row.
- ±: half of the distance between the fastest and the slowest repeat. Medians throughout; greedy decoding;
  prefill is timed apart.
- Byte limit: bytes of weights a dense token reads over those a sparse one reads, lm_head included: the speed-up
  if nothing but reading weights took time. MB/token and GB/s: weights read, and how fast. Of peak: against the
  bandwidth that a plain reduction reached in the same run.
- TFLOPs/128: for 128 tokens, dense → sparse, two for each weight that is multiplied (the embedding is not)."""


def _notes(records: list[dict[str, Any]]) -> list[str]:
    distinct = partial(in_order, records)

    def version(package: str) -> str:
        return f"{package} {distinct(lambda record: record['versions'][package])}"

    peaks = [record["latency"]["read_bandwidth"] / 1e9 for record in records]
    return [
        f"- {distinct(_model_note)}.",
        *(f"- {line}" for line in model_lines(records)),
        f"- {distinct(lambda record: record['latency']['new_tokens'])} new tokens, medians of "
        f"{distinct(_repeats)} repeats; peak measured before each cell: {_range(peaks)} GB/s.",
        f"- {version('torch')}, {version('triton')}, {version('transformers')}.",
    ]


def _commit(record: dict[str, Any]) -> str:
    return (record["git"] or {}).get("commit", "unknown")


def _range(values: list[float]) -> str:
    low, high = f"{min(values):,.1f}", f"{max(values):,.1f}"
    return low if low == high else f"{low} to {high}"


def _repeats(record: dict[str, Any]) -> int:
    return max(timing["repeats"] for timing in record["latency"]["timings"].values())


def _model_note(record: dict[str, Any]) -> str:
    weights = " with random weights" if has_random_weights(record["config"]) else ""
    return f"{record['model']['name']}: {record['model']['parameters'] / 1e6:,.0f} M parameters{weights}"


def _over(latency: dict[str, Any], compiled: Compiled | None) -> str:
    if compiled is None:
        return NOT_MEASURED
    own = any(timing["tok_s"] == compiled.tok_s for timing in latency["timings"].values())
    return f"{latency['tok_s'] / compiled.tok_s:.2f}× {compiled.mode}{'' if own else ' *'}"


def _row(record: dict[str, Any], plain: PlainPyTorch) -> list[str]:
    latency, traffic = record["latency"], record["latency"]["traffic"]
    timings = latency["timings"]
    dense = record["method"]["name"] == "dense"
    measured = timings[ENGINE_DENSE] if dense else timings["engine-sparse"]
    spread = 50 * (measured["tok_s_highest"] - measured["tok_s_lowest"]) / measured["tok_s"]
    over = {name: f"{latency['tok_s'] / timing['tok_s']:.2f}×" for name, _, timing in baselines(latency)}
    return [
        ", ".join(filter(None, (record["model"]["name"], weights_of(record)))),
        record["model"]["dtype"],
        str(latency["batch"]),
        str(latency["prompt"]),
        f"{100 * record['sparsity']:g} %",
        record["method"]["name"],
        f"{100 * traffic['realised_sparsity']:.1f}",
        f"{timings[ENGINE_DENSE]['tok_s']:.1f}",
        "" if dense else f"{latency['tok_s']:.1f}",
        f"{spread:.1f}",
        "" if dense else over[ENGINE_DENSE],
        _over(latency, plain.transformers),
        _over(latency, plain.decoder),
        _over(latency, plain.faster),
        over.get(EAGER, NOT_MEASURED),
        f"{latency['byte_limit_speedup']:.2f}×",
        f"{latency['dense_tflops_128_tokens']:.3g} → {latency['tflops_128_tokens']:.3g}",
        f"{traffic['bytes_per_token'] / 1e6:,.1f}",
        f"{latency['bandwidth_reached'] / 1e9:,.1f}",
        f"{100 * latency['share_of_bandwidth']:.0f}",
        f"{1000 * measured['prefill_seconds']:.1f}",
        _commit(record)[:7],
    ]


SPEED = Table(
    name="speed",
    title="Decode speed",
    command="make reproduce-speed",
    read=read_speed,
    entries=entries,
    columns=columns,
    above=lambda data: HEADER,
    page=speed_markdown,
)
