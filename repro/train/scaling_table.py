"""What sparsity costs a model in three sizes that were trained alike: table and plot.

python -m wisparse.repro.train.scaling_table --cards outputs/scaling-models --records outputs/scaling \
    --output results/scaling --keep-records results/records/scaling.tar.xz
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..configuration import mistakes_in_one_line
from ..measured.comparison import bytes_of
from ..measured.paired_bootstrap import RESAMPLES
from ..measured.rise import exact_perplexity
from ..tables.kept_records import made_from_records, records_parser
from ..tables.make import write_tables
from ..tables.plot_style import line_style
from ..tables.table import PERCENT, Column, Table, Value, entries_as_rows, markdown_table, number
from ..tables.text import NOT_MEASURED, introduced, settings_lines
from .scaling_cells import AtSize, ScalingData, block_bytes, read_scaling

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = (0.4, 0.5, 0.6)
"""Shares of the block weights not read at which the sizes are compared."""
RISE = number(1, 100, end=" %")
TIMES = number(2)
NO_RISE = "–"


def entries(data: ScalingData) -> Iterator[AtSize]:
    """Rows of the CSV: sizes of a method and a sparsity beside each other."""
    for sparsity in SHOWN:
        for method in data.methods:
            for model in data.cards:
                yield AtSize(data, model, method, sparsity)


def columns(_: Sequence[str]) -> list[Column[AtSize]]:
    """Columns in the order of the CSV."""
    return [
        Column("model", "Model", lambda found: found.model),
        Column("parameters", "Parameters", lambda found: found.data.cards[found.model]["parameters"]),
        Column("method", "Method", lambda found: found.method),
        Column("sparsity", "Sparsity", lambda found: found.sparsity, form=PERCENT),
        Column("relative_rise", "Rise", lambda found: found.rise, 5, RISE, bounds=True, absent=NOT_MEASURED),
        Column("over_smallest", "÷ smallest", lambda found: found.over_smallest, 4, TIMES, bounds=True,
               absent=NO_RISE),
    ]  # fmt: skip


def _model_columns(data: ScalingData) -> list[Column[str]]:
    """Columns of the table of models."""

    def of_card(part: str) -> Callable[[str], Value]:
        return lambda model: data.cards[model][part]

    def in_blocks(model: str) -> Value:
        dense = data.dense(model)
        sparse = [cell for method in data.methods for cell in data.sparse(model, method)]
        return block_bytes(dense, sparse[0]) / bytes_of(dense) if dense and sparse else None

    def perplexity(model: str) -> Value:
        dense = data.dense(model)
        return None if dense is None else exact_perplexity(dense)

    return [
        Column("model", "Model", lambda model: model),
        Column("parameters", "Parameters", of_card("parameters"), form=number(1, 1e-6, end=" M")),
        Column("in_blocks", "Read in blocks", in_blocks, 4, PERCENT, absent=NOT_MEASURED),
        Column("tokens", "Tokens a parameter",
               lambda model: data.cards[model]["tokens_seen"] / data.cards[model]["parameters"], 3, number(1)),
        Column("seconds", "Training, s", of_card("seconds"), 1, number(0)),
        Column("held_out", "Held-out perplexity", of_card("held_out_perplexity"), 4, number(3)),
        Column("dense", "Of the suite's texts", perplexity, 4, number(3), absent=NOT_MEASURED),
    ]  # fmt: skip


def _method_columns(data: ScalingData) -> list[Column[tuple[AtSize, ...]]]:
    """Columns of a sparsity's table, in which a row is a method in all sizes."""
    made = {column.name: column for column in columns(())}

    def at(place: int, name: str, title: str) -> Column[tuple[AtSize, ...]]:
        return dataclasses.replace(made[name], name=f"{name}_{place}", title=title,
                                   value=lambda row: made[name].value(row[place]))  # fmt: skip

    sizes = (at(place, "relative_rise", model) for place, model in enumerate(data.cards))
    return [
        Column("method", "Method", lambda row: row[0].method),
        *(dataclasses.replace(size, best="least") for size in sizes),
        at(len(data.cards) - 1, "over_smallest", "largest ÷ smallest"),
    ]


def page(data: ScalingData) -> str:
    """The whole page: the models, then a table for each sparsity."""
    card = next(iter(data.cards.values()))
    recipe, text = card["recipe"], card["text"]
    lines = [
        "**Small models of this project's own: how methods compare, not what they score on large models.**",
        f"Models: a Llama of one depth in {len(data.cards)} widths, trained from scratch by one recipe on the "
        f"same {card['tokens_seen']:,} tokens of {text['training_text_tokens']:,} of Python sources "
        f"({recipe['optimizer']}, learning rate {recipe['learning_rate']} for every size, seed "
        f"{recipe['seed']}; {card['device']}). **A larger one has seen fewer tokens a parameter**: size is not "
        "all that differs. Held-out perplexity: as its card has it, of other text than the suite's.",
        "Rise: perplexity over that of the same size's dense model, less 1. It is taken where as large a share "
        "of the block weights is not read, between the two cells around it: the logarithm of the rise is "
        "linear in the bytes, the rise itself towards the dense model. Nothing is extrapolated.",
        f"{NO_RISE}: the smallest size has no sure rise.",
        "Read in blocks: share of the bytes of a dense token that are the blocks'; the rest is the embedding "
        "as the head, which is read in full. The smaller a model, the less sparsity can save.",
        f"Brackets: 95 % intervals from {RESAMPLES:,} resamples, paired by document, of one seed and one "
        "training a size.",
        *settings_lines(data.cells.values()),
    ]
    models = _model_columns(data)
    parts = [introduced("# Sparsity and size", lines), "## The models",
             markdown_table(models, list(entries_as_rows(models, data.cards)))]  # fmt: skip
    for sparsity in SHOWN:
        shown = _method_columns(data)
        rows = [tuple(AtSize(data, model, method, sparsity) for model in data.cards) for method in data.methods]
        parts += [f"## Rise at {sparsity:.0%} of the block weights not read",
                  markdown_table(shown, list(entries_as_rows(shown, rows)), lambda row: 0)]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def figure(data: ScalingData) -> Figure:
    """One panel a sparsity: a line a method, rise against parameters."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(3.4 * len(SHOWN), 3.2), layout="constrained")
    axes = drawn.subplots(1, len(SHOWN), sharey=True)
    parameters = {model: card["parameters"] / 1e6 for model, card in data.cards.items()}
    for axis, sparsity in zip(axes, SHOWN, strict=True):
        for place, method in enumerate(data.methods):
            found = {model: AtSize(data, model, method, sparsity).rise for model in data.cards}
            points = [
                (parameters[model], 100 * rise.value)
                for model, rise in found.items()
                if rise and rise.value > 0
            ]
            if points:
                axis.plot(*zip(*points, strict=True), **line_style(place), markersize=4, label=method)
        axis.set(title=f"{sparsity:.0%} not read", xscale="log", yscale="log", xlabel="million parameters")
        axis.set_xticks(list(parameters.values()), [f"{count:.1f}" for count in parameters.values()])
        axis.minorticks_off()
        axis.patch.set_alpha(0.0)
    axes[0].set_ylabel("rise of perplexity, %")
    axes[0].legend(fontsize=8)
    return drawn


SCALING = Table(
    name="scaling",
    title="Sparsity and size",
    command="python repro/run.py experiment=scaling",
    read=read_scaling,
    entries=entries,
    columns=columns,
    above=lambda data: "",
    page=page,
    figure=figure,
)


@mistakes_in_one_line()
def main() -> None:
    """Write the table and the plot of the sizes."""
    parser = records_parser(__doc__.splitlines()[0], "path of the table without .md and .csv")
    parser.add_argument("--cards", type=Path, required=True, help="folder with a folder of each model's card")
    arguments = parser.parse_args()
    made_from_records(
        arguments,
        lambda records: read_scaling(arguments.cards, *records),
        lambda data: write_tables(SCALING, data, arguments.output),
    )
    print(f"written: {arguments.output}.md, .csv, .png and .svg")


if __name__ == "__main__":
    main()
