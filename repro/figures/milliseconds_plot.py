"""What sparse and quantised weights lose against the milliseconds of a token at another model's size: a plot.

python -m wisparse.repro.figures.milliseconds_plot results/real/quantised.csv results/steps.csv

Writes quantised_milliseconds.png and .svg beside the first table. Losses are of the model of that table,
milliseconds of a decode step with random weights, of the same bits and nominal sparsity.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ...method.errors import UserError
from ..configuration import mistakes_in_one_line
from ..tables.csv_rows import Row, read_rows
from ..tables.plot_style import COLOURS, INK, MARKERS, ink, write_figure
from ..tables.speed.step_rows import StepSetting, fastest_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BITS = {"none": 16, "int8": 8, "int4": 4, "int4_calibrated": 4}
"""Bits of a weight by how it is quantised."""
SHAPE = "llama3.1-8b"
"""Model whose shapes were timed."""
SETTING = StepSetting(SHAPE, "bfloat16", context=128, batch=1)
LARGEST_RATIO = 3.0
"""Ratio of perplexities at the top of the plot: beyond it a model is of no use."""


class Timed(NamedTuple):
    """What a format and sparsity lose with the best method, and how long a token takes."""

    quantisation: str
    sparsity: float
    method: str
    ratio: float
    milliseconds: float


def timed(losses: Iterable[Row], steps: Iterable[Row]) -> list[Timed]:
    """One point for each format and sparsity of the losses that was timed, with the method that loses least."""
    times = {
        place[1:]: float(row["ms"]) for place, row in fastest_steps(steps).items() if place.setting == SETTING
    }
    found = defaultdict(list)
    for row in losses:
        place = BITS.get(row["quantisation"], 0), float(row["sparsity"])
        ratio = _ratio(row)
        if place in times and ratio is not None:
            point = Timed(row["quantisation"], place[1], row["method"], ratio, times[place])
            found[point[:2]].append(point)
    best = [min(points, key=lambda point: point.ratio) for points in found.values()]
    return sorted(best, key=lambda point: (list(BITS).index(point.quantisation), point.sparsity))


def _ratio(row: Row) -> float | None:
    """Perplexity over that of the dense model, which has no ratio itself; None where a row was not measured."""
    if row["perplexity_ratio"]:
        return float(row["perplexity_ratio"])
    return 1.0 if (row["quantisation"], row["method"]) == ("none", "dense") else None


def milliseconds_figure(points: list[Timed], model: str) -> Figure:
    """Perplexity over the dense model's against milliseconds of a token, one line a format."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axis = figure.subplots()
    for place, name in enumerate(dict.fromkeys(point.quantisation for point in points)):
        mine = [point for point in points if point.quantisation == name]
        axis.plot([point.milliseconds for point in mine], [point.ratio for point in mine],
                  color=COLOURS[place], marker=MARKERS[place], markersize=4, lw=1.2, label=name)  # fmt: skip
        for point in mine:
            if point.ratio < LARGEST_RATIO:
                axis.annotate(f"{point.sparsity:.0%}", (point.milliseconds, point.ratio), color=INK, fontsize=6,
                              xytext=(3, 3), textcoords="offset points")  # fmt: skip
    axis.set(yscale="log", ylim=(0.97, LARGEST_RATIO), xlim=(0, None))
    axis.set_yticks([1, 1.2, 1.5, 2, 3], ["1", "1.2", "1.5", "2", "3"], minor=False)
    axis.minorticks_off()
    axis.set(xlabel=f"ms a token at {SHAPE}'s shapes, random weights", ylabel=f"perplexity ÷ dense, {model}")
    axis.legend(fontsize=7)
    return figure


def write_plot(losses: Path, steps: Path) -> list[Path]:
    """Draw the plot beside the table of losses; returns what was written, nothing without a timed format."""
    rows = read_rows(losses)
    points = timed(rows, read_rows(steps))
    if not points:
        return []
    output = losses.with_name("quantised_milliseconds")
    with ink(output.name):
        return write_figure(milliseconds_figure(points, rows[0]["model"]), output)


@mistakes_in_one_line()
def main(arguments: Iterable[str] | None = None) -> None:
    """Draw losses against milliseconds of a token."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("losses", type=Path, help="quantised.csv of one model")
    parser.add_argument("steps", type=Path, help="steps.csv")
    options = parser.parse_args(arguments)
    written = write_plot(options.losses, options.steps)
    if not written:
        raise UserError(f"{options.losses} and {options.steps} have no format and sparsity in common")
    for path in written:
        print(f"written: {path}")


if __name__ == "__main__":
    main()
