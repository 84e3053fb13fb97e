"""Kernel speed as a table: `python -m wisparse.repro.kernel_table --output results/kernels.csv`.

Every projection of a 7-8B model by itself, sparse beside dense, and attention beside torch's, caches cold.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..kernels.bandwidth import read_bandwidth
from ..kernels.cpu_speed import measure
from .csv_rows import csv_text, read_rows
from .records import write_text

CPU_SHAPES = {"gate": (4096, 14336), "down": (14336, 4096)}
SPARSITIES = (0.0, 0.25, 0.4, 0.5, 0.6, 0.7)
CAPACITY = 256
"""Slots of the cache: short contexts list o's channels by query head."""
COLUMNS = (
    "device", "shape", "projection", "dtype", "sparsity", "us", "dense_us", "speedup", "gb_s", "err",
    "peak_gb_s", "backend", "threads",
)  # fmt: skip


def measured_rows(repeats: int, tune: bool) -> list[dict[str, Any]]:
    """Measure on the GPU, or without one on the CPU; one row a projection, dtype and sparsity."""
    if torch.cuda.is_available():
        return list(_gpu_rows(torch.device("cuda"), tune))
    peak = read_bandwidth(torch.device("cpu")) / 1e9
    rows = measure(CPU_SHAPES, (torch.float32, torch.bfloat16), SPARSITIES, repeats)
    return [row | {"peak_gb_s": peak} for row in rows]


def _gpu_rows(device: torch.device, tune: bool) -> Iterator[dict[str, Any]]:
    """Every product of the 7-8B models, with tuned tiles or with those that suit a large GPU, and attention."""
    from ..kernels.gpu_speed import attention_rows, product_rows
    from ..kernels.model_shapes import MODEL_SHAPES
    from ..kernels.step_tiles import default_tiles
    from ..kernels.tuning import tuned_tiles

    peak = read_bandwidth(device) / 1e9
    kind = "tuned" if tune else "default"
    for (name, shape), dtype in itertools.product(MODEL_SHAPES.items(), (torch.bfloat16, torch.float16)):
        tiles = {
            s: tuned_tiles(shape, dtype, device, sparsity=s, capacity=CAPACITY)
            if tune
            else default_tiles(shape, capacity=CAPACITY)
            for s in SPARSITIES
        }
        for row in product_rows(name, shape, dtype, device, tiles):
            yield asdict(row) | {"peak_gb_s": peak, "backend": f"{row.backend}, {kind} tiles"}
        for row in attention_rows(name, shape, dtype, device):
            yield asdict(row) | {"peak_gb_s": peak, "backend": f"{row.backend}, default tiles"}


def kernels_csv(rows: Iterable[dict[str, Any]]) -> str:
    """The rows in the columns' order; microseconds, shares, 1e9 bytes a second."""
    return csv_text(COLUMNS, map(_csv_row, rows))


def _csv_row(row: dict[str, Any]) -> dict[str, Any]:
    shape = row["shape"] if isinstance(row["shape"], str) else "x".join(str(size) for size in row["shape"])
    rounded = {name: f"{value:.6g}" for name, value in row.items() if isinstance(value, float)}
    shown = row | {"shape": shape} | rounded
    return {name: shown[name] for name in COLUMNS if name in shown}  # a measurement knows more than is shown


def rows_of_other_devices(path: Path, device: str) -> list[dict[str, Any]]:
    """What the table holds of other devices: a run renews the rows of its own."""
    return [row for row in read_rows(path) if row["device"] != device]


def write_kernels(path: Path, repeats: int, tune: bool = True) -> None:
    """Measure, and write the table; `tune`: a GPU's launches first, by shape, dtype and sparsity (an hour)."""
    rows = measured_rows(repeats, tune)
    write_text(path, kernels_csv([*rows_of_other_devices(path, rows[0]["device"]), *rows]))


def main() -> None:
    """Measure kernels on this machine and write them into a table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, required=True, help="path of the .csv")
    parser.add_argument("--repeats", type=int, default=21, help="timed repeats of each product on a CPU")
    parser.add_argument("--untuned", action="store_true", help="default tiles on a GPU: minutes, not an hour")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        print(f"error: --repeats {arguments.repeats} is not at least 1", file=sys.stderr)
        sys.exit(2)
    write_kernels(arguments.output, arguments.repeats, not arguments.untuned)
    print(arguments.output.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
