"""WiSparse's figures drawn from the rows of their CSV files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...method.projections import PROJECTIONS
from ..models.architecture import PAPER_MODELS
from ..tables.csv_rows import Row
from ..tables.plot_style import COLOURS, INK, line_style
from ..tables.text import NOT_MEASURED
from .rows import RANDOM, TIMED_METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = (3.3, 2.7)
"""Inches of one panel."""
COLUMNS = 3
"""Panels beside each other in Figure 4."""
HIDDEN = "small |x|, large norm"
MOST_NUMBERED_BLOCKS = 12
"""Beyond, the cells of Figure 6 are too narrow for their numbers."""


def mismatch_figure(rows: list[Row]) -> Figure:
    """Figure 2: column norm against E|x|, a point a channel; a row of panels a projection, a column a model."""
    models, projections = _distinct(rows, "model"), _distinct(rows, "projection")
    figure, axes = _panels(len(projections), len(models))
    for axis_row, projection in zip(axes, projections, strict=True):
        for axis, model in zip(axis_row, models, strict=True):
            mine = [row for row in rows if (row["model"], row["projection"]) == (model, projection)]
            hidden = [_is_hidden(row, len(mine)) for row in mine]
            for chosen, colour, label in ((False, COLOURS[0], None), (True, COLOURS[1], HIDDEN)):
                points = [row for row, is_hidden in zip(mine, hidden, strict=True) if is_hidden == chosen]
                _scatter(axis, points, colour, label)
            correlation, share = mismatch(mine)
            title = f"{model}, block {mine[0]['block']}, {projection}"
            axis.set(title=f"{title}\nrank correlation {correlation:+.2f}", xscale="log", yscale="log")
            axis.set_xlabel(f"E|x|; {share:.0%} of the small half have large norms")
            _plain_numbers(axis)
        axis_row[0].set_ylabel("column norm")
    axes[0, 0].legend(fontsize=8, loc="lower right", handletextpad=0.2)
    return figure


def _scatter(axis: Axes, rows: list[Row], colour: str, label: str | None) -> None:
    places = ([float(row[name]) for row in rows] for name in ("magnitude", "column_norm"))
    axis.scatter(*places, s=6, color=colour, linewidths=0, label=label)


def _plain_numbers(axis: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    for side in (axis.xaxis, axis.yaxis):
        low, high = side.get_view_interval()
        # Over more than a decade and a half, so many numbers would lie on each other.
        side.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if high < 30 * low else (1, 3)))
        side.set_major_formatter("{x:g}")
        side.set_minor_locator(NullLocator())


def _is_hidden(row: Row, channels: int) -> bool:
    """Whether a channel is in the smaller half by E|x| and in the larger half by column norm."""
    return 2 * int(row["magnitude_rank"]) > channels >= 2 * int(row["norm_rank"])


def mismatch(rows: list[Row]) -> tuple[float, float]:
    """Spearman's correlation of E|x| and norm over one projection's channels, and the share of the smaller half
    by E|x| that is in the larger half by norm (0.5 were they independent).
    """
    ranks = [[int(row[name]) for row in rows] for name in ("magnitude_rank", "norm_rank")]
    small = sum(2 * rank > len(rows) for rank in ranks[0])
    return float(np.corrcoef(ranks)[0, 1]), sum(_is_hidden(row, len(rows)) for row in rows) / small


def one_block_figure(rows: list[Row]) -> Figure:
    """Figure 3: perplexity against the one sparse block, a line a sparsity, a panel a model; bands are 95 %."""
    models = _distinct(rows, "model")
    figure, axes = _panels(1, len(models))
    for axis, model in zip(axes[0], models, strict=True):
        mine = [row for row in rows if row["model"] == model]
        dense = float(mine[0]["dense_perplexity"])
        for place, sparsity in enumerate(_distinct(mine, "sparsity")):
            line = [row for row in mine if row["sparsity"] == sparsity]
            _line(axis, line, "perplexity", place, f"{float(sparsity):.0%}")
            low, high = (
                [dense * float(row[f"perplexity_ratio_{end}"]) for row in line] for end in ("low", "high")
            )
            axis.fill_between(_blocks(line), low, high, color=COLOURS[place], alpha=0.2, linewidth=0)
        axis.axhline(dense, color=INK, linestyle=":", label="dense")
        axis.set(title=model)
        _block_axis(axis, mine)
    axes[0, 0].set_ylabel("perplexity")
    axes[0, 0].legend(fontsize=8)
    return figure


def cost_figure(rows: list[Row]) -> Figure:
    """Figure 4: computed TFLOPs of the 7-8B models, and a panel of tokens a second for each measured model."""
    measured = [row for row in rows if row["status"] == "measured"]
    settings = list(dict.fromkeys((row["model"], row["device"]) for row in measured))
    figure, axes = _panels(-(-(1 + len(settings)) // COLUMNS), min(COLUMNS, 1 + len(settings)))
    computed, *timed = axes.flat
    for place, model in enumerate(PAPER_MODELS):
        mine = {row["sparsity"]: row for row in rows if row["model"] == model}
        _line(computed, list(mine.values()), "tflops_128_tokens", place, model, "sparsity")
    computed.set(title="computed from the architecture", ylabel="TFLOPs of 128 tokens")
    for axis, (model, device) in zip(timed, settings, strict=False):
        mine = [row for row in measured if (row["model"], row["device"]) == (model, device)]
        beside = {
            method: [row for row in mine if row["method"] in ("dense", method)] for method in TIMED_METHODS
        }
        for place, (method, line) in enumerate(beside.items()):
            if any(row["method"] == method for row in line):
                _line(axis, line, "tok_s", place, method, "sparsity")
                _line(axis, line, "dense_tok_s", place + 2, f"dense, beside {method}", "sparsity")
        axis.set(title=f"{model}\n{device}, measured", ylabel="tokens a second")
    for axis in axes.flat[: 1 + len(settings)]:
        axis.set(xlabel="sparsity, %", ylim=(0, None))
        axis.legend(fontsize=7, loc="lower left", labelspacing=0.3)  # below the flat dense line
    for axis in axes.flat[1 + len(settings) :]:
        axis.remove()
    timed_models = {model.removesuffix(RANDOM) for model, _ in settings}
    if absent := [
        model for model in _distinct(rows, "model") if model.removesuffix(RANDOM) not in timed_models
    ]:
        figure.supxlabel(f"throughput {NOT_MEASURED}: {', '.join(absent)}", fontsize=8)
    return figure


def allocation_figure(rows: list[Row]) -> Figure:
    """Figure 5: sparsity of attention and MLP by block, a panel a model."""
    models = _distinct(rows, "model")
    figure, axes = _panels(1, len(models))
    for axis, model in zip(axes[0], models, strict=True):
        mine = [row for row in rows if row["model"] == model]
        for place, (name, label) in enumerate((("attention", "attention"), ("mlp", "MLP"))):
            _line(axis, mine, name, place, label, scale=100)
        _line(axis, mine, "block_sparsity", 2, "block", scale=100)
        axis.axhline(100 * float(mine[0]["sparsity"]), color=INK, linestyle=":", label="target")
        axis.set(title=model, ylim=(0, 100))
        _block_axis(axis, mine)
    axes[0, 0].set_ylabel("sparsity in the plan, %")
    axes[0, 0].legend(fontsize=8, ncols=2)
    return figure


def alpha_figure(rows: list[Row]) -> Figure:
    """Figure 6: α by block and projection, a panel a model; nothing where a projection stays dense."""
    models = _distinct(rows, "model")
    figure, axes = _panels(1, len(models))
    largest = max(float(row[name]) for row in rows for name in PROJECTIONS if row[name])
    for axis, model in zip(axes[0], models, strict=True):
        mine = [row for row in rows if row["model"] == model]
        alphas = np.array([[float(row[name] or "nan") for row in mine] for name in PROJECTIONS])
        axis.grid(visible=False)
        mesh = axis.pcolormesh(alphas, cmap="viridis", vmin=0, vmax=largest)
        if len(mine) <= MOST_NUMBERED_BLOCKS:
            for (projection, block), alpha in np.ndenumerate(alphas):
                colour = INK if np.isnan(alpha) else "white" if alpha < largest / 2 else "black"
                shown = "–" if np.isnan(alpha) else f"{alpha:g}"
                style = {"ha": "center", "va": "center", "fontsize": 6.5, "color": colour}
                axis.text(block + 0.5, projection + 0.5, shown, **style)
        every = 1 if len(mine) <= MOST_NUMBERED_BLOCKS else 4
        axis.set_xticks(np.arange(0, len(mine), every) + 0.5, range(0, len(mine), every))
        axis.set_yticks(np.arange(len(PROJECTIONS)) + 0.5, PROJECTIONS)
        axis.invert_yaxis()
        axis.set(title=model, xlabel="block")
    figure.colorbar(mesh, ax=axes[0, -1], label="α")
    return figure


def _panels(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.25, color=INK, linewidth=0.5)
        axis.spines[["top", "right"]].set_visible(False)
        axis.patch.set_visible(False)
    return figure, axes


def _line(
    axis: Axes,
    rows: list[Row],
    column: str,
    place: int,
    label: str,
    against: str = "block",
    scale: float = 1.0,
) -> None:
    """Values of a column, times `scale`, against blocks or against sparsity in percent."""
    values = [scale * float(row[column]) for row in rows]
    x = _blocks(rows) if against == "block" else [100 * float(row[against]) for row in rows]
    axis.plot(x, values, label=label, **line_style(place), markersize=4, linewidth=1.5)


def _blocks(rows: list[Row]) -> list[int]:
    return [int(row["block"]) for row in rows]


def _block_axis(axis: Axes, rows: list[Row]) -> None:
    blocks = 1 + max(int(row["block"]) for row in rows)
    axis.set_xlabel("block")
    axis.set_xticks(range(0, blocks, 1 if blocks <= MOST_NUMBERED_BLOCKS else 4))


def _distinct(rows: list[Row], column: str) -> list[str]:
    return list(dict.fromkeys(row[column] for row in rows))
