"""Plots of the report: Table 1 drawn in the page's own colours, and figures from files as data."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

from ..figures.page import TITLES
from ..tables.csv_rows import Row
from ..tables.plot_style import COLOURS, INK, NO_METADATA, ink, inline_svg, line_style, stored_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEDIA = {".svg": "image/svg+xml", ".png": "image/png"}


def colours(rows: list[Row]) -> dict[str, str]:
    """Colour of each method in the table's order, dense apart; never grey, which is faint on any background."""
    methods = dict.fromkeys(row["method"] for row in rows if row["method"] != "dense")
    return {method: COLOURS[place % (len(COLOURS) - 1)] for place, method in enumerate(methods)}


def accuracy_plots(rows: list[Row]) -> dict[str, str]:
    """SVG by model: the share of dense accuracy kept, and perplexity over dense, against sparsity."""
    measured = [row for row in rows if row["status"] == "measured" and row["method"] != "dense"]
    palette = colours(rows)
    models = list(dict.fromkeys(row["model"] for row in measured))
    return {model: _model_plot([row for row in measured if row["model"] == model], palette) for model in models}


def _model_plot(rows: list[Row], palette: dict[str, str]) -> str:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    with ink(rows[0]["model"]):
        figure = Figure(figsize=(4.2, 5.2), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        _lines(upper, rows, palette, "kept")
        upper.set(ylabel="average kept, % of dense")
        _lines(lower, rows, palette, "perplexity_ratio")
        lower.set(xlabel="sparsity, %", ylabel="perplexity ÷ dense", yscale="log")
        lower.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
        lower.yaxis.set_major_formatter("{x:g}")
        lower.yaxis.set_minor_locator(NullLocator())
        lower.set_xticks(sorted({100 * float(row["sparsity"]) for row in rows}))
        lower.xaxis.set_major_formatter("{x:g}")
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata=NO_METADATA)
    return inline_svg(text.getvalue())


def _lines(axis: Axes, rows: list[Row], palette: dict[str, str], column: str) -> None:
    for place, (method, colour) in enumerate(palette.items()):
        points = sorted(
            (100 * float(row["sparsity"]), float(row[column]))
            for row in rows
            if row["method"] == method and row[column]
        )
        if points:
            style = line_style(place) | {"color": colour}
            axis.plot(*zip(*points, strict=True), label=method, markersize=4, **style)
    axis.grid(alpha=0.25, color=INK, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)


def paper_figures(folder: Path) -> dict[str, str]:
    """SVG of every figure of WiSparse's in a folder, by title, in the page's colours."""
    found = {title: folder / f"{name}.svg" for name, title in TITLES.items()}
    return {title: stored_svg(path) for title, path in found.items() if path.is_file()}


def figure_files(results: Path) -> list[Path]:
    """Figures beside the tables, in order of name; of one as SVG and PNG the SVG."""
    found = {path.stem: path for suffix in (".png", ".svg") for path in results.glob(f"*{suffix}")}
    return [found[stem] for stem in sorted(found)]


def data_address(path: Path) -> str:
    """The file as a data: address."""
    return f"data:{MEDIA[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
