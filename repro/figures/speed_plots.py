"""Plots of decode speed from the tables in a folder: `python -m wisparse.repro.figures.speed_plots results`.

speed-*.png: speed-up against sparsity, the byte limit drawn in; from speed.csv. Weights of the model's own have
one plot, each format in few bits another. kernels-*.png: microseconds of every projection against the bytes it
reads, the measured bandwidth drawn in; from kernels.csv. heads-*.png: speed-up of whole steps that look at some
of the key-value groups, against the context; from heads_speed.csv.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ...method.errors import UserError
from ..configuration import mistakes_in_one_line
from ..tables.csv_rows import Row, read_rows
from ..tables.plot_style import INK, ink, line_style, write_figure
from ..tables.speed.speed_data import OWN_WEIGHTS, in_main_dtype

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PRODUCTS = ("qkv", "o", "gate_up", "gate", "down")
SETTING = ("device", "shape", "projection", "dtype", "sparsity")


def speed_figure(rows: list[Row]) -> Figure:
    """Speed-up over the engine's dense path against realised sparsity, one panel a model."""
    from matplotlib.figure import Figure

    # Other batches and longer prompts are other questions, for the table.
    setting = min((int(row["batch"]), int(row["prompt"])) for row in rows)
    rows = [row for row in rows if (int(row["batch"]), int(row["prompt"])) == setting]
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(4.6 * len(models) + 1.6, 3.8), layout="constrained")
    axes = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for axis, model in zip(axes, models, strict=True):
        mine = [row for row in rows if row["model"] == model]
        for place, method in enumerate(methods):
            points = sorted(
                (100 * float(row["realised_sparsity"]), float(row["speedup"]))
                for row in mine
                if row["method"] == method
            )
            axis.plot(*zip(*points, strict=True), **line_style(place), label=method)
        limits = sorted(
            (100 * float(row["realised_sparsity"]), float(row["byte_limit_speedup"])) for row in mine
        )
        axis.plot(*zip(*limits, strict=True), color=INK, linestyle=":", label="byte limit")
        axis.axhline(1.0, color=INK, linewidth=0.8)
        axis.set(title=model, xlabel="realised sparsity while decoding, %")
    axes[0].set_ylabel("speed-up over the engine's dense path")
    figure.legend(*_named_once(axes), loc="outside right upper", fontsize=8)
    figure.suptitle(", ".join(filter(None, (rows[0]["device"], _weights(rows[0])))))
    return figure


def heads_figure(rows: list[Row]) -> Figure:
    """Speed-up of a step over the one that looks at all groups, against the context: a line for each batch.

    A panel is of one shape and number of groups.
    """
    from matplotlib.figure import Figure

    panels: dict[tuple[str, int, int], list[Row]] = defaultdict(list)
    for row in rows:
        panels[row["shape"], int(row["kept"]), int(row["groups"])].append(row)
    shapes = {shape for shape, _, _ in panels}
    figure = Figure(figsize=(4.6 * len(panels) + 1.6, 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    batches = sorted({int(row["batch"]) for row in rows})
    for axis, ((shape, kept, groups), mine) in zip(axes, sorted(panels.items()), strict=True):
        for place, batch in enumerate(batches):
            points = sorted(
                (int(row["context"]), float(row["speedup"])) for row in mine if int(row["batch"]) == batch
            )
            if points:
                axis.plot(*zip(*points, strict=True), **line_style(place), markersize=4, label=f"batch {batch}")
        contexts = sorted({int(row["context"]) for row in rows})
        axis.set_xscale("log", base=2)
        axis.set_xticks(contexts, [f"{context:,}" for context in contexts])
        axis.axhline(1.0, color=INK, linewidth=0.8)
        of_shape = f"{shape}: " if len(shapes) > 1 else ""
        axis.set(title=f"{of_shape}{kept} of {groups} groups", xlabel="tokens of context")
    axes[0].set_ylabel("speed-up of a whole step over all groups")
    figure.legend(*_named_once(axes), loc="outside right upper", fontsize=8)
    of_all = f", {shapes.pop()}'s shapes" if len(shapes) == 1 else ""
    figure.suptitle(f"{rows[0]['device']}{of_all}")
    return figure


def kernel_figure(rows: list[Row]) -> Figure:
    """Microseconds of a launch against the megabytes it reads, by projection; the line is the bandwidth."""
    from matplotlib.figure import Figure

    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure = Figure(figsize=(4.6 * len(dtypes) + 2.6, 3.8), layout="constrained")
    axes = figure.subplots(1, len(dtypes), squeeze=False)[0]
    for axis, dtype in zip(axes, dtypes, strict=True):
        _roofline(axis, [row for row in rows if row["dtype"] == dtype])
        axis.set(title=dtype, xlabel="MB read", ylabel="µs a launch", xscale="log", yscale="log")
    figure.legend(*_named_once(axes), loc="outside right upper", fontsize=8)
    figure.suptitle(f"{rows[0]['device']}: each projection from 0 % (right) to its highest sparsity (left)")
    return figure


def _roofline(axis: Axes, rows: list[Row]) -> None:
    launches: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        microseconds = float(row["us"])
        launches[f"{row['projection']} {row['shape']}"].append(
            (float(row["gb_s"]) * microseconds / 1e3, microseconds)
        )
    for place, (name, points) in enumerate(launches.items()):
        points.sort()
        axis.plot(
            *zip(*points, strict=True),
            **line_style(place),
            markersize=4,
            label=name,
        )
    peak = max(float(row["peak_gb_s"]) for row in rows)
    read = [megabytes for points in launches.values() for megabytes, _ in points]
    ends = [min(read), max(read)]
    line = [1e3 * end / peak for end in ends]
    axis.plot(ends, line, color=INK, linestyle=":", label=f"{peak:.0f} GB/s, measured")


def _named_once(axes: Iterable[Axes]) -> tuple[list[Artist], list[str]]:
    """Lines that a legend beside all panels names, each once."""
    by_name = {
        name: line for axis in axes for line, name in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    return list(by_name.values()), list(by_name)


def write_plots(folder: Path) -> list[Path]:
    """Write PNG and SVG of every table that is in the folder, no plot mixing devices or formats of weights.

    Returns what was written.
    """
    written = []
    for table, (prefix, draw, shown) in PLOTS.items():
        plots: dict[str, list[Row]] = defaultdict(list)
        for row in shown(read_rows(folder / f"{table}.csv")):
            plots["-".join(filter(None, (prefix, _slug(row["device"]), _weights(row))))].append(row)
        for name, rows in plots.items():
            with ink(name):
                written += write_figure(draw(rows), folder / name)
    return written


def _weights(row: Row) -> str:
    """How weights are quantised; empty for a model's own, and where there are no others."""
    return row.get("quantisation", OWN_WEIGHTS).removesuffix(OWN_WEIGHTS)


def _main_settings(rows: list[Row]) -> list[Row]:
    return in_main_dtype(row for row in rows if _is_main_setting(row))


def _chosen_heads(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["part"] == "step" and row["masked"] == "none" and row["speedup"]]


def _is_main_setting(row: Row) -> bool:
    return row["baseline"] == "engine-dense" and row["method"] != "dense" and row["batch"] == "1"


def _one_way_each(rows: list[Row]) -> list[Row]:
    """One row a product, dtype and sparsity: what a decode step runs, so CUDA C++ before Triton, but alone."""
    ways: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["projection"] in PRODUCTS:
            ways[tuple(row[name] for name in SETTING)].append(row)
    return [max(found, key=lambda row: row["backend"] == "cuda c++") for found in ways.values()]


PLOTS: dict[str, tuple[str, Callable[[list[Row]], Figure], Callable[[list[Row]], list[Row]]]] = {
    "speed": ("speed", speed_figure, _main_settings),
    "kernels": ("kernels", kernel_figure, _one_way_each),
    "heads_speed": ("heads", heads_figure, _chosen_heads),
}
"""First part of the name of a table's plots, what draws one, and the rows that it shows, by the table."""


def _slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


@mistakes_in_one_line()
def main(arguments: Iterable[str] | None = None) -> None:
    """Draw the plots of the tables in a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="folder with some of these tables")
    folder = parser.parse_args(arguments).folder
    written = write_plots(folder)
    if not written:
        raise UserError(f"{folder} holds no speed.csv, kernels.csv or heads_speed.csv with rows")
    for path in written:
        print(f"written: {path}")


if __name__ == "__main__":
    main()
