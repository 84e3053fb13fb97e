"""The frontier as a plot, from its table: `python -m wisparse.repro.figures.frontier_plot results`.

Writes frontier.png and frontier.svg: perplexity and average accuracy against the bytes a token reads.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from ...method.errors import UserError
from ..configuration import mistakes_in_one_line
from ..measured.cells import method_rank
from ..measured.pruned_cells import PRUNED
from ..tables.csv_rows import Row, read_rows
from ..tables.plot_style import ink, line_style, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LARGEST_RATIO = 3.0
"""Ratio of a perplexity to the dense one at the top of the plot: beyond it a model is of no use."""

MOST_INSIDE = 8
"""Methods whose legend has its place inside of a panel."""

FEWEST_OF_A_LINE_TO_DENSE = 3
"""Sparsities of a method whose line ends at the dense point: from fewer, all of it would be a guess."""

LINE_OF_LEGEND = 0.24
"""Inches that an entry of a legend beside the panels takes."""

MEASURES = {"perplexity": "perplexity ÷ dense", "average": "average accuracy, %"}
"""Columns of the table that have a row of panels each, where anything was measured, and their labels."""

Points = dict[str, list[tuple[float, float]]]


def frontier_figure(rows: list[Row]) -> Figure:
    """One column a model, protocol and calibration text: perplexity over dense above, average accuracy below.

    Means over the seeds; lines of methods that are trained are broken, those of pruned weights dotted.
    """
    from matplotlib.figure import Figure

    parts = list(dict.fromkeys(_part(row) for row in rows))
    methods = sorted({row["method"] for row in rows} - {"dense"}, key=method_rank)
    trained = {row["method"] for row in rows if row.get("trained") == "True"}
    styles = {
        method: line_style(place)
        | ({"ls": "--"} if method in trained else {"ls": ":"} if method.startswith(PRUNED) else {})
        for place, method in enumerate(methods)
    }
    measures = [measure for measure in MEASURES if any(row[measure] for row in rows)]
    beside = len(methods) > MOST_INSIDE
    height = max(3.0 * len(measures), LINE_OF_LEGEND * len(methods) if beside else 0.0)
    figure = Figure(figsize=(max(4.5, 3.6 * len(parts)), height), layout="constrained")
    axes = figure.subplots(len(measures), len(parts), squeeze=False, sharex="col", sharey="row")
    for column, part in enumerate(parts):
        mine = [row for row in rows if _part(row) == part]
        for axis, measure in zip(axes[:, column], measures, strict=True):
            _draw(axis, _points(mine, measure), styles)
        axes[0, column].set(title=part, yscale="log", ylim=(0.99, LARGEST_RATIO))
        axes[0, column].set_yticks([1, 1.2, 1.5, 2, 3], ["1", "1.2", "1.5", "2", "3"], minor=False)
        axes[0, column].minorticks_off()
        axes[-1, column].set(xlabel="MB a token reads")
    for axis, measure in zip(axes[:, 0], measures, strict=True):
        axis.set_ylabel(MEASURES[measure])
    if beside:  # of all panels: not every method is in each
        drawn = {line.get_label(): line for axis in axes[0] for line in axis.get_lines()}
        shown = [method for method in methods if method in drawn]
        figure.legend([drawn[method] for method in shown], shown, fontsize=8, loc="outside right upper")
    else:
        axes[0, 0].legend(fontsize=8)
    return figure


def _part(row: Row) -> str:
    """Title of the panel that a row is in: its model, and protocol and calibration text where it has them."""
    protocol = row.get("protocol")
    if protocol is None:
        return row["model"]
    return f"{row['model']}, protocol {protocol},\ncalibrated on {row['calibration']}"


def _points(rows: list[Row], figure: str) -> Points:
    """(MB, mean over the seeds) of each sparsity by method, sorted by bytes.

    The dense point ends each line of enough sparsities.
    """
    found: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row[figure]:
            value = float(row[figure]) / (float(row["dense_perplexity"]) if figure == "perplexity" else 1.0)
            found[row["method"]][row["sparsity"]].append((float(row["bytes_per_token"]) / 1e6, value))
    means = {
        method: [(mean(mb for mb, _ in seeds), mean(v for _, v in seeds)) for seeds in by_sparsity.values()]
        for method, by_sparsity in found.items()
    }
    dense = means.pop("dense", [])
    return {
        method: sorted(points + dense if len(points) >= FEWEST_OF_A_LINE_TO_DENSE else points)
        for method, points in means.items()
    }


def _draw(axis: Axes, points: Points, styles: dict[str, dict[str, str]]) -> None:
    for method, style in styles.items():
        if method in points:
            axis.plot(*zip(*points[method], strict=True), **style, markersize=4, label=method)
    axis.patch.set_alpha(0.0)


def write_plot(folder: Path) -> list[Path]:
    """Draw FOLDER/frontier.csv. Raises UserError when it is missing, or no dense cells say what 1 is."""
    path = folder / "frontier.csv"
    if not path.is_file():
        raise UserError(
            f"{path} is missing; make it with: python -m wisparse.repro.tables frontier --records …"
        )
    rows = [row for row in read_rows(path) if row["dense_perplexity"]]
    if not rows:
        raise UserError(f"{path} has no model with a dense cell")
    with ink("frontier"):
        return write_figure(frontier_figure(rows), folder / "frontier")


@mistakes_in_one_line()
def main(arguments: Iterable[str] | None = None) -> None:
    """Draw the frontier of the table in a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="folder with frontier.csv")
    written = write_plot(parser.parse_args(arguments).folder)
    for path in written:
        print(f"written: {path}")


if __name__ == "__main__":
    main()
