"""The plot of sparse and quantised weights: cells, and for each format the best that its methods reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...measured.cells import method_rank
from ...measured.comparison import bytes_of
from ...measured.quantised_cells import OWN, QuantisedData
from ...measured.rise import exact_perplexity
from ..plot_style import COLOURS, INK, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LARGEST_RATIO = 3.0
"""Ratio of a perplexity to the dense one at the top of the plot: beyond it a model is of no use."""
POINTS = 60
"""Budgets at which the line of a format is drawn."""


def quantised_figure(data: QuantisedData) -> Figure:
    """One panel a model: perplexity over that of the dense model in its own weights, against MB a token."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    formats = list(dict.fromkeys(name for model in data.models for name in data.formats(model)))
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(formats)}
    methods = sorted({place.method for place in data.cells}, key=method_rank)
    markers = {name: MARKERS[place % len(MARKERS)] for place, name in enumerate(methods)}
    figure = Figure(figsize=(max(5.0, 4.0 * len(data.models)), 3.8), layout="constrained")
    axes = figure.subplots(1, len(data.models), squeeze=False, sharey=True)[0]
    for axis, model in zip(axes, data.models, strict=True):
        _draw(axis, data, model, colours, markers)
        axis.set(title=model, xlabel="MB a token reads", yscale="log", ylim=(0.97, LARGEST_RATIO))
        axis.set_yticks([1, 1.2, 1.5, 2, 3], ["1", "1.2", "1.5", "2", "3"], minor=False)
        axis.minorticks_off()
        axis.patch.set_alpha(0.0)
    axes[0].set_ylabel("perplexity ÷ dense")
    lines = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    dots = [Line2D([], [], color=INK, marker=mark, ls="", label=name) for name, mark in markers.items()]
    axes[0].legend(handles=[*lines, *dots], fontsize=7, ncols=2)
    return figure


def _draw(
    axis: Axes, data: QuantisedData, model: str, colours: dict[str, str], markers: dict[str, str]
) -> None:
    own = exact_perplexity(data.dense(model, OWN))
    for place, cell in data.cells.items():
        if place.model == model:
            axis.plot(bytes_of(cell) / 1e6, exact_perplexity(cell) / own, color=colours[place.quantisation],
                      marker=markers[place.method], markersize=3, ls="")  # fmt: skip
    for name in data.formats(model):
        read = [bytes_of(cell) for place, cell in data.cells.items() if place[:2] == (model, name)]
        budgets = np.linspace(min(read), max(read), POINTS)
        found = [(budget, data.best_within(model, name, budget)) for budget in budgets]
        line = [(budget / 1e6, best.ratio.value) for budget, best in found if best]
        if line:
            axis.plot(*zip(*line, strict=True), color=colours[name], lw=1.2)
