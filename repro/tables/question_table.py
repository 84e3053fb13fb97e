"""Table of what one factor changes, as CSV, Markdown and a plot; the same code for every question.

python -m wisparse.repro.tables question --records outputs/question_alpha --output results/questions/alpha
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .csv_rows import csv_text
from .paired_bootstrap import Interval
from .plot_style import INK, line_style
from .question_data import METHOD, Place, QuestionData
from .text import (
    EMBEDDED_NOTE,
    NOT_MEASURED,
    commit_text,
    device_text,
    distinct,
    interval_text,
    joined,
    number_text,
    table_row,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Find = Callable[[dict[str, Any]], float | None]

PERPLEXITY: Find = lambda record: record["perplexity"]  # noqa: E731 - a name for what two functions find
AVERAGE: Find = lambda record: record["average"]  # noqa: E731
LARGEST_PERPLEXITY = 200.0
"""Perplexity at the top of a plot: beyond it a model is of no use."""
NUMBERS: dict[str, Find] = {
    "realised_sparsity": lambda record: record["realised"]["realised_sparsity"],
    "bytes_per_token": lambda record: record["realised"]["bytes_per_token"],
    "perplexity": PERPLEXITY,
    "average": AVERAGE,
    "search_evaluations": lambda record: record["plan"]["provenance"]["evaluations"],
    "search_seconds": lambda record: sum(record["plan"]["seconds_by_stage"].values()),
}
"""Columns that are means over seeds."""


def question_csv(data: QuestionData) -> str:
    """One row a place: means over seeds, the range of perplexity over seeds, and both comparisons."""
    bounds = [
        f"{name}{end}" for name in ("perplexity_ratio", "average_difference") for end in ("", "_low", "_high")
    ]
    columns = [*Place._fields, "seeds", *NUMBERS, "perplexity_lowest", "perplexity_highest", *bounds]
    return csv_text(columns, (_csv_row(data, place) for place in data.places))


def _csv_row(data: QuestionData, place: Place) -> dict[str, object]:
    perplexities = data.values(place, PERPLEXITY)
    return {
        **place._asdict(),
        "seeds": len(data.seeds(place)),
        **{name: _mean_text(data.values(place, find), 5) for name, find in NUMBERS.items()},
        "perplexity_lowest": number_text(min(perplexities, default=None), 5),
        "perplexity_highest": number_text(max(perplexities, default=None), 5),
        **_bounds("perplexity_ratio", data.perplexity_ratio(place)),
        **_bounds("average_difference", data.average_difference(place)),
    }


def _mean_text(values: list[float], digits: int) -> str:
    return number_text(statistics.mean(values), digits) if values else ""


def _bounds(name: str, found: Interval | None) -> dict[str, str]:
    if found is None:
        return {}
    ends = {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return {end: number_text(value, 5) for end, value in ends.items()}


def question_markdown(data: QuestionData) -> str:
    """The table with what it was measured on above it."""
    factor = data.question["factor"]
    heads = ["Model", *([] if factor == METHOD else ["Method"]), "Sparsity", data.question["name"], "Seeds",
             "Realised %", "MB/token", "Perplexity", f"÷ {data.question['reference']}", "Average",
             f"− {data.question['reference']}", "Evaluations", "Seconds"]  # fmt: skip
    lines = [table_row(heads), table_row(["---"] * 4 + ["---:"] * (len(heads) - 4))]
    lines += [table_row(_texts(data, place)) for place in data.places]
    return (
        "\n".join([f"# {data.question['title']}", "", EMBEDDED_NOTE, "", *_settings(data), "", *lines]) + "\n"
    )


def _settings(data: QuestionData) -> Iterator[str]:
    records = [cell.record for cell in data.cells.values()]
    record = records[0]
    limits = {name: record["config"]["suite"].get(name) for name in ("limit", "documents")}
    yield (
        f"- Search budget `{record['config']['search']['name']}`; suite limits: {joined(limits)}. "
        f"Device: {distinct(records, device_text)}. Commit: {distinct(records, commit_text)}."
    )
    yield (
        "- Means over seeds; in parentheses the lowest and the highest perplexity. MB/token: all that a sparse "
        "token reads, rotations, low-rank factors and lm_head included. Seconds: of the plan, where processes "
        "shared the machine."
    )
    yield (
        "- Brackets: 95 % bootstrap intervals, paired by document and by item. Perplexity ratios are at the "
        "reference's bytes a token: log-perplexity is interpolated between a row's two nearest sparsities, if "
        "two were measured."
    )


def _texts(data: QuestionData, place: Place) -> list[str]:
    perplexities, averages = data.values(place, PERPLEXITY), data.values(place, AVERAGE)
    means = {name: statistics.mean(data.values(place, find) or [0.0]) for name, find in NUMBERS.items()}
    spread = f" ({min(perplexities):.3f}–{max(perplexities):.3f})" if len(perplexities) > 1 else ""
    level = place.level if place.method != "dense" or data.question["factor"] != METHOD else "dense"
    return [
        place.model,
        *([] if data.question["factor"] == METHOD else [place.method]),
        f"{100 * place.sparsity:g} %",
        f"{level:g}" if isinstance(level, float) else str(level),
        str(len(data.seeds(place))),
        f"{100 * means['realised_sparsity']:.1f}",
        f"{means['bytes_per_token'] / 1e6:.2f}",
        f"{means['perplexity']:.3f}{spread}",
        interval_text(data.perplexity_ratio(place), "{:.3f}"),
        f"{statistics.mean(averages):.2f}" if averages else NOT_MEASURED,
        interval_text(data.average_difference(place), "{:+.2f}"),
        f"{means['search_evaluations']:.0f}",
        f"{means['search_seconds']:.1f}",
    ]


def question_figure(data: QuestionData) -> Figure:
    """Perplexity, and average accuracy where measured, against the factor; a column a model."""
    from matplotlib.figure import Figure

    rows = [("perplexity", PERPLEXITY), ("average, %", AVERAGE)]
    rows = [row for row in rows if any(data.values(place, row[1]) for place in data.places)]
    models = sorted({place.model for place in data.places})
    figure = Figure(figsize=(4.4 * len(models), 3.2 * len(rows) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), len(models), squeeze=False)
    for row, (label, find) in enumerate(rows):
        for axis, model in zip(axes[row], models, strict=True):
            _draw(axis, data, [place for place in data.places if place.model == model], find)
            axis.set(title=model, xlabel="sparsity, %" if _against_sparsity(data) else data.question["name"])
            axis.set_ylabel(label)
            if find is PERPLEXITY:
                _logarithmic(axis)
    # Where cells are lacking, no model has every line.
    lines = {
        name: line for axis in axes.flat for line, name in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=6, fontsize=8)
    figure.suptitle(f"{data.question['title']} (embedded models)")
    return figure


def _logarithmic(axis: Axes) -> None:
    """Perplexity as powers, up to what a model of any use has; the table has the rest."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    high = min(high, LARGEST_PERPLEXITY)
    axis.set_ylim(low, high)
    wide = high > 4 * low
    axis.yaxis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if wide else (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 5, 7))
    )
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_locator(NullLocator())


def _draw(axis: Axes, data: QuestionData, places: list[Place], find: Find) -> None:
    numeric = all(isinstance(level, int | float) for level in data.levels) or _against_sparsity(data)
    lines: dict[str, list[Place]] = {}
    for place in places:
        if place.method != "dense":
            lines.setdefault(_line_name(data, place), []).append(place)
    names = list(dict.fromkeys(_line_name(data, place) for place in data.places if place.method != "dense"))
    for name, line in lines.items():
        index = names.index(name)  # the same of every model
        values = [data.values(place, find) for place in line]
        means = [statistics.mean(found) for found in values]
        errors = [
            [mean - min(found) for mean, found in zip(means, values, strict=True)],
            [max(found) - mean for mean, found in zip(means, values, strict=True)],
        ]
        where = [_position(data, place, numeric) for place in line]
        axis.errorbar(
            where, means, errors, label=name, capsize=2, markersize=4, linewidth=1.2,
            linestyle="-" if numeric else ":", **line_style(index),
        )  # fmt: skip
    for place in places:
        if place.method == "dense" and data.values(place, find):
            axis.axhline(statistics.mean(data.values(place, find)), color=INK, linewidth=0.8)
    if not numeric:
        axis.set_xticks(range(len(data.levels)), [str(level) for level in data.levels], rotation=25, ha="right")


def _against_sparsity(data: QuestionData) -> bool:
    """Methods at more than two sparsities are drawn against sparsity, a line a method."""
    sparsities = {place.sparsity for place in data.places if place.method != "dense"}
    return data.question["factor"] == METHOD and len(sparsities) > 2


def _line_name(data: QuestionData, place: Place) -> str:
    if _against_sparsity(data):
        return place.method
    sparsity = f"{100 * place.sparsity:g} %"
    if data.question["factor"] == METHOD:
        return sparsity
    several = len({other.sparsity for other in data.places if other.method == place.method}) > 1
    return f"{place.method} {sparsity}" if several else place.method


def _position(data: QuestionData, place: Place, numeric: bool) -> float:
    if _against_sparsity(data):
        return 100 * place.sparsity
    return place.level if numeric else data.levels.index(place.level)
