"""Kernel speed as a table: `python -m wisparse.repro.speed.kernel_table --output results/kernels.csv`.

Every projection of a 7-8B model by itself, sparse beside dense, and attention beside torch's, caches cold.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...kernels.bench.cpu_speed import measure
from ...kernels.bench.parts.bandwidth import read_bandwidth
from ...kernels.bench.parts.model_shapes import MODEL_SHAPES
from ...method.errors import UserError
from ..configuration import mistakes_in_one_line
from ..records import write_text
from ..tables.csv_rows import csv_text, read_rows, renewed

CPU_SHAPES = {"gate": (4096, 14336), "down": (14336, 4096)}
SPARSITIES = (0.0, 0.25, 0.4, 0.5, 0.6, 0.7)
CAPACITY = 256
"""Slots of the cache: short contexts list o's channels by query head."""
COLUMNS = (
    "device", "shape", "projection", "dtype", "sparsity", "us", "dense_us", "speedup", "gb_s", "err",
    "peak_gb_s", "backend", "threads",
)  # fmt: skip


@dataclass(frozen=True)
class GpuPart:
    """Part of a GPU's table that is measured."""

    tune: bool = True
    """Tiles tuned by shape, dtype and sparsity (an hour for all), or those that suit a large GPU."""
    models: tuple[str, ...] = tuple(MODEL_SHAPES)
    dtypes: tuple[str, ...] = ("bfloat16", "float16")
    sparsities: tuple[float, ...] = SPARSITIES


def measured_rows(repeats: int, part: GpuPart) -> list[dict[str, Any]]:
    """Measure on the GPU, or without one on the CPU; one row a projection, dtype, sparsity and backend."""
    if torch.cuda.is_available():
        return list(_gpu_rows(torch.device("cuda"), part))
    peak = read_bandwidth(torch.device("cpu")) / 1e9
    rows = measure(CPU_SHAPES, (torch.float32, torch.bfloat16), SPARSITIES, repeats)
    return [row | {"peak_gb_s": peak} for row in rows]


def _gpu_rows(device: torch.device, part: GpuPart) -> Iterator[dict[str, Any]]:
    """Every product of the 7-8B models, and what surrounds it."""
    from ...kernels.bench.gpu_speed import attention_rows, listing_rows, product_rows, selection_rows
    from ...kernels.gpu.step_tiles import default_tiles
    from ...kernels.gpu.tuning.products import tuned_tiles

    peak = read_bandwidth(device) / 1e9
    kind = "tuned" if part.tune else "default"
    for name, dtype_name in itertools.product(part.models, part.dtypes):
        shape, dtype = MODEL_SHAPES[name], getattr(torch, dtype_name)
        tiles = {
            s: tuned_tiles(shape, dtype, device, sparsity=s, capacity=CAPACITY)
            if part.tune
            else default_tiles(shape, capacity=CAPACITY)
            for s in part.sparsities
        }
        common = (name, shape, dtype, device)
        for row in product_rows(*common, tiles):
            # Tiles of CUDA C++ are tuned inside a decode step alone.
            told = f"{row.backend}, {kind} tiles" if row.backend.startswith("triton") else row.backend
            yield row.to_dict() | {"peak_gb_s": peak, "backend": told}
        beside = (attention_rows(*common), listing_rows(*common, default_tiles(shape)), selection_rows(*common))
        for row in itertools.chain(*beside):
            yield row.to_dict() | {"peak_gb_s": peak}


def kernels_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows in the columns' order; microseconds, shares, 1e9 bytes a second."""
    return csv_text(COLUMNS, map(_csv_row, rows))


def _csv_row(row: Mapping[str, Any]) -> dict[str, Any]:
    shape = row["shape"] if isinstance(row["shape"], str) else "x".join(str(size) for size in row["shape"])
    rounded = {name: f"{value:.6g}" for name, value in row.items() if isinstance(value, float)}
    shown = {**row, "shape": shape, **rounded}
    return {name: shown[name] for name in COLUMNS if name in shown}  # a measurement knows more than is shown


def measurement(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a row of the table from others."""
    shown = _csv_row(row)
    return *(shown[name] for name in COLUMNS[:4]), float(shown["sparsity"]), shown["backend"]


def write_kernels(path: Path, repeats: int, part: GpuPart | None = None) -> None:
    """Measure, and renew the rows of the table that were measured."""
    rows = measured_rows(repeats, part or GpuPart())
    write_text(path, kernels_csv(renewed(read_rows(path), rows, measurement)))


@mistakes_in_one_line()
def main() -> None:
    """Measure kernels on this machine and write them into a table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, required=True, help="path of the .csv")
    parser.add_argument("--repeats", type=int, default=21, help="timed repeats of each product on a CPU")
    gpu = parser.add_argument_group("on a GPU")
    gpu.add_argument("--untuned", action="store_true", help="default tiles: minutes, not an hour")
    gpu.add_argument("--models", nargs="+", choices=MODEL_SHAPES, default=GpuPart.models)
    gpu.add_argument("--dtypes", nargs="+", choices=GpuPart.dtypes, default=GpuPart.dtypes)
    gpu.add_argument("--sparsities", nargs="+", type=float, default=SPARSITIES)
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        raise UserError(f"--repeats {arguments.repeats} is not at least 1")
    chosen = map(tuple, (arguments.models, arguments.dtypes, arguments.sparsities))
    write_kernels(arguments.output, arguments.repeats, GpuPart(not arguments.untuned, *chosen))
    print(arguments.output.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
