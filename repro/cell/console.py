"""Table on the console: what a person sees of a record, beside the dense model's where that is known."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from ..record_facts import is_pruned, model_notes


class Row(NamedTuple):
    """One measure; what is not known is empty."""

    measure: str
    value: str
    spread: str = ""
    dense: str = ""
    difference: str = ""
    n: str = ""
    chance: str = ""


HEADS = Row("measure", "value", "±", "dense", "difference", "n", "chance")
PIPED_WIDTH = 120
"""Characters of a table that goes into a file."""


def print_record(record: dict[str, Any], dense: dict[str, Any] | None = None) -> None:
    """Print the results of one cell as a table on stdout.

    dense: the record of the dense model under the same settings; None where there is none.
    """
    sections = [rows for rows in (_scores(record, dense), _reading(record), _speed(record)) if rows]
    shown = [place for place in range(len(HEADS)) if any(row[place] for rows in sections for row in rows)]
    table = Table(title=record["cell"]["name"], title_justify="left", caption_justify="left")
    for place in shown:
        table.add_column(HEADS[place], justify="right" if place else "left")
    for rows in sections:
        for row in rows:
            table.add_row(*(row[place] for place in shown))
        table.add_section()
    table.caption = "; ".join(_caption(record, dense))
    Console(width=None if sys.stdout.isatty() else PIPED_WIDTH).print(table)


def _evaluated(record: dict[str, Any]) -> bool:
    """Whether any text went through the model: without a suite only the speed was measured."""
    return record["realised"]["tokens"] > 0


def _caption(record: dict[str, Any], dense: dict[str, Any] | None) -> Iterator[str]:
    if _evaluated(record):
        yield f"protocol {record['protocol']['name']}: {record['protocol']['description']}"
    if record["tasks"]:
        yield "± of tasks: one standard error"
    if any(timing["repeats"] > 1 for timing in _timings(record).values()):
        yield "± of tok/s: half the distance of the fastest from the slowest repeat"
    if dense is not None:
        yield "difference: to dense in points, perplexity and bytes as ratios"
    yield f"seed {record['seed']}"
    yield f"{sum(record['seconds'].values()):.0f} s"
    yield from (note.rstrip(".") for note in model_notes(record))


def _scores(record: dict[str, Any], dense: dict[str, Any] | None) -> list[Row]:
    rows = []
    for name, task in record["tasks"].items():
        other = dense and dense["tasks"][name]["value"]
        rows.append(
            Row(
                f"{name} ({task['metric']})",
                f"{100 * task['value']:.1f} %",
                f"{100 * task['stderr']:.1f}",
                "" if other is None else f"{100 * other:.1f} %",
                "" if other is None else f"{100 * (task['value'] - other):+.1f}",
                str(task["n"]),
                f"{100 * task['chance']:.1f}",
            )
        )
    average, perplexity = record["average"], record["perplexity"]
    if average is not None:
        other = dense and dense["average"]
        known = () if other is None else (f"{other:.2f} %", f"{average - other:+.2f}")
        rows.append(Row("average", f"{average:.2f} %", "", *known))
    if perplexity is not None:
        documents = str(record["n_documents"])
        other = dense and dense["perplexity"]
        known = () if other is None else (f"{other:.3f}", f"× {perplexity / other:.4f}")
        rows.append(Row("perplexity", f"{perplexity:.3f}", "", *known, n=documents))
        bits, other = record["bits_per_byte"], dense and dense["bits_per_byte"]
        known = () if other is None else (f"{other:.4f}", f"{bits - other:+.4f}")
        rows.append(Row("bits per byte", f"{bits:.4f}", "", *known, n=documents))
    return rows


def _reading(record: dict[str, Any]) -> list[Row]:
    """What was left out while the suite was answered."""
    if not _evaluated(record):
        return []
    error = (record.get("quantisation") or {}).get("relative_error")  # which records of before do not know
    off = [] if error is None else [Row("weights off by, of their norm", f"{100 * error:.2f} %")]
    return [*_bytes(record, record["realised"], "realised sparsity"), *off]


def _bytes(record: dict[str, Any], traffic: dict[str, Any], title: str) -> list[Row]:
    own, dense = traffic["bytes_per_token"], traffic["dense_bytes_per_token"]
    left_out = Row(title, f"{100 * traffic['realised_sparsity']:.2f} %")
    if is_pruned(record):  # zeros of the weights themselves: every token multiplies by the rest
        left_out = Row("weights pruned", f"{100 * record['quantisation']['config']['sparsity']:.2f} %")
    return [
        left_out,
        Row("bytes read per token", f"{own:,.0f}", "", f"{dense:,.0f}", f"× {own / dense:.3f}"),
    ]


def _timings(record: dict[str, Any]) -> dict[str, Any]:
    latency = record.get("latency")  # which records of before speed could be measured lack
    return {} if latency is None else latency["timings"]


def _speed(record: dict[str, Any]) -> list[Row]:
    """Tokens a second of each decoder, with the spread where it was timed more than once."""
    latency = record.get("latency")  # which records of before speed could be measured lack
    if latency is None:
        return []
    rows = []
    for name, timing in _timings(record).items():
        repeats, half = timing["repeats"], (timing["tok_s_highest"] - timing["tok_s_lowest"]) / 2
        spread = f"{half:.1f}" if repeats > 1 else ""
        rows.append(Row(f"{name}, tok/s", f"{timing['tok_s']:.1f}", spread, n=str(repeats)))
    rows += [Row(f"speed-up over {name}", f"{speedup:.2f} ×") for name, speedup in latency["speedups"].items()]
    return [
        *rows,
        Row("byte limit of the speed-up", f"{latency['byte_limit_speedup']:.2f} ×"),
        *_bytes(record, latency["traffic"], "realised sparsity while decoding"),
        Row("bandwidth reached", f"{latency['bandwidth_reached'] / 1e9:.1f} GB/s"),
        Row("of measured bandwidth", f"{100 * latency['share_of_bandwidth']:.0f} %"),
    ]
