"""Table on the console: what a person sees of a record."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def print_record(record: dict[str, Any]) -> None:
    """Print the results of one cell as a table on stdout."""
    realised = record["realised"]
    table = Table(title=record["cell"]["name"], title_justify="left", caption_justify="left")
    for column in ("measure", "value", "± stderr", "n", "chance"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    for name, task in record["tasks"].items():
        table.add_row(
            f"{name} ({task['metric']})",
            f"{100 * task['value']:.1f} %",
            f"{100 * task['stderr']:.1f}",
            str(task["n"]),
            f"{100 * task['chance']:.1f}",
        )
    table.add_section()
    if record["average"] is not None:
        table.add_row("average", f"{record['average']:.2f} %")
    if record["perplexity"] is not None:
        documents = str(record["n_documents"])
        table.add_row("perplexity", f"{record['perplexity']:.3f}", "", documents)
        table.add_row("bits per byte", f"{record['bits_per_byte']:.4f}", "", documents)
    table.add_row("realised sparsity", f"{100 * realised['realised_sparsity']:.2f} %")
    table.add_row("bytes read per token", f"{realised['bytes_per_token']:,.0f}")
    table.add_row("of dense", f"{100 * realised['bytes_per_token'] / realised['dense_bytes_per_token']:.1f} %")
    if record["latency"] is not None:
        table.add_section()
        _add_latency(table, record["latency"])
    table.caption = (
        f"protocol {record['protocol']['name']}: {record['protocol']['description']}; seed {record['seed']}; "
        f"{sum(record['seconds'].values()):.0f} s"
    )
    Console().print(table)


def _add_latency(table: Table, latency: dict[str, Any]) -> None:
    """Tokens a second of each decoder; ± is half the distance of the fastest from the slowest repeat."""
    for name, timing in latency["timings"].items():
        spread = (timing["tok_s_highest"] - timing["tok_s_lowest"]) / 2
        table.add_row(f"{name}, tok/s", f"{timing['tok_s']:.1f}", f"{spread:.1f}", str(timing["repeats"]))
    for name, speedup in latency["speedups"].items():
        table.add_row(f"speed-up over {name}", f"{speedup:.2f} ×")
    table.add_row("byte limit of the speed-up", f"{latency['byte_limit_speedup']:.2f} ×")
    table.add_row("realised sparsity while decoding", f"{100 * latency['traffic']['realised_sparsity']:.2f} %")
    table.add_row("bandwidth reached", f"{latency['bandwidth_reached'] / 1e9:.1f} GB/s")
    table.add_row("of measured bandwidth", f"{100 * latency['share_of_bandwidth']:.0f} %")
