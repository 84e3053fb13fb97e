"""Table of what one factor changes, as CSV, Markdown and a plot; the same code for every question.

python -m wisparse.repro.tables question --records outputs/question_alpha --output results/questions/alpha
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ...measured.comparison import REACH, Outside
from ...measured.frontier import search_seconds
from ...measured.paired_bootstrap import RESAMPLES
from ...record_facts import is_embedded
from ..plot_style import INK, line_style
from ..table import MEGABYTES, PERCENT, PERCENT_1, Column, Form, Table, number
from ..text import commit_text, device_text, distinct, headed, joined, model_lines
from .question_data import METHOD, Place, QuestionData, read_question

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INSIDE, WITHIN_REACH = "inside", f"up to {REACH:.0%} beyond"
NOT_COMPARABLE = "not comparable at equal bytes"

Find = Callable[[dict[str, Any]], float | None]

PERPLEXITY: Find = lambda record: record["perplexity"]  # noqa: E731 - a name for what two functions find
AVERAGE: Find = lambda record: record["average"]  # noqa: E731
LARGEST_PERPLEXITY = 200.0
"""Perplexity at the top of a plot: beyond it a model is of no use."""
NUMBERS: dict[str, tuple[str, Find, Form]] = {
    "realised_sparsity": ("Realised", lambda record: record["realised"]["realised_sparsity"], PERCENT_1),
    "bytes_per_token": ("MB/token", lambda record: record["realised"]["bytes_per_token"], MEGABYTES),
    "perplexity": ("Perplexity", PERPLEXITY, number(3)),
    "average": ("Average", AVERAGE, number(2)),
    "search_evaluations": (
        "Evaluations",
        lambda record: record["plan"]["provenance"]["evaluations"],
        number(0),
    ),
    "search_seconds": ("Seconds", search_seconds, number(1)),
}
"""Title, value and form of the columns that are means over seeds."""

Entry = tuple[QuestionData, Place]


def entries(data: QuestionData) -> Iterator[Entry]:
    """Rows in the order of the table."""
    for place in data.places:
        yield data, place


def columns(_: Sequence[str]) -> list[Column[Entry]]:
    """Columns in the order of the CSV: means over seeds, the range of perplexity, the comparisons."""

    def extreme(choose: Callable[..., float | None]) -> Callable[[Entry], float | None]:
        return lambda entry: choose(entry[0].values(entry[1], PERPLEXITY), default=None)

    return [
        Column("model", "Model", lambda entry: entry[1].model),
        Column("method", "Method", lambda entry: entry[1].method),
        Column("sparsity", "Sparsity", lambda entry: entry[1].sparsity, form=PERCENT),
        Column("level", "What is varied", lambda entry: entry[1].level),
        Column("seeds", "Seeds", lambda entry: len(entry[0].seeds(entry[1]))),
        *(Column(name, title, _mean(find), 5, form) for name, (title, find, form) in NUMBERS.items()),
        Column("perplexity_lowest", "lowest", extreme(min), 5, number(3)),
        Column("perplexity_highest", "highest", extreme(max), 5, number(3)),
        Column("perplexity_ratio", "÷ reference at its bytes",
               lambda entry: entry[0].perplexity_ratio(entry[1]), 5, number(3), bounds=True,
               absent="equal_bytes"),
        Column("nominal_perplexity_ratio", "÷ reference at its sparsity",
               lambda entry: entry[0].nominal_perplexity_ratio(entry[1]), 5, number(3), bounds=True),
        Column("average_difference", "− reference", lambda entry: entry[0].average_difference(entry[1]), 5,
               number(2, sign="+"), bounds=True),
        Column("equal_bytes", "Bytes within what was measured", equal_bytes),
    ]  # fmt: skip


def _mean(find: Find) -> Callable[[Entry], float | None]:
    def mean(entry: Entry) -> float | None:
        values = entry[0].values(entry[1], find)
        return statistics.mean(values) if values else None

    return mean


def equal_bytes(entry: Entry) -> str:
    """Whether a row is compared at its reference's bytes: INSIDE of what was measured, WITHIN_REACH, or not."""
    found = entry[0].at_equal_bytes(entry[1])
    if found is None:
        return ""
    if isinstance(found, Outside):
        return NOT_COMPARABLE
    return WITHIN_REACH if any(between.beyond for between, _ in found) else INSIDE


def above(data: QuestionData) -> str:
    """The question, and what it was measured on."""
    question = data.question
    asked = f"- What is varied: {question['name']}. The reference is `{question['reference']}`."
    return "\n".join([headed(f"# {question['title']}", data.cells.values()), "", asked, *_settings(data)])


def _settings(data: QuestionData) -> Iterator[str]:
    records = [cell.record for cell in data.cells.values()]
    record = records[0]
    limits = {name: record["config"]["suite"].get(name) for name in ("limit", "documents")}
    yield (
        f"- Search budget `{record['config']['search']['name']}`; suite limits: {joined(limits)}. "
        f"Device: {distinct(records, device_text)}. Commit: {distinct(records, commit_text)}."
    )
    yield (
        "- Means over seeds; lowest and highest: perplexity of a seed. MB/token: all that a sparse "
        "token reads, rotations, low-rank factors and lm_head included. Seconds: of the plan, where processes "
        "shared the machine."
    )
    yield (
        f"- Brackets: 95 % bootstrap intervals from {RESAMPLES:,} resamples, paired by document and by item."
    )
    yield (
        "- At its bytes: log-perplexity is linear in the bytes between the two sparsities of a row that "
        "enclose the bytes which the reference reads. Nothing is extrapolated, but for rows that say so: there "
        f"the line goes on for at most {REACH:.0%} of the distance between the sparsities. Where the bytes lie "
        f"further out, or one sparsity alone was measured, the row is {NOT_COMPARABLE}."
    )
    yield "- At its sparsity: both at the same nominal sparsity, whatever they read."
    yield from (f"- {line}" for line in model_lines(records))


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
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=2 * len(models), fontsize=8)
    embedded = all(is_embedded(cell.record["config"]) for cell in data.cells.values())
    # Wrapped: a title may be wider than the one plot of a single model.
    figure.suptitle(data.question["title"] + (" (embedded models)" if embedded else ""), wrap=True)
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


QUESTION = Table(
    name="question",
    title="What the reviewers asked",
    command="python repro/run.py experiment=question_alpha",
    read=read_question,
    entries=entries,
    columns=columns,
    above=above,
    figure=question_figure,
)
