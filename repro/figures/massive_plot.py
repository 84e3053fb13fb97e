"""Massive activations as a figure: what the first token holds, and what each method does to it.

python -m wisparse.repro.figures.massive_plot --records outputs/massive_real --output results/real/massive

Writes OUTPUT.csv, and from it OUTPUT.png and OUTPUT.svg.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configuration import mistakes_in_one_line
from ..measured.cells import Key, MeasuredCell, method_rank, place_of, stored_cells
from ..measured.comparable import check_comparable
from ..records import write_text
from ..tables.csv_rows import Row, csv_path, csv_text, read_rows
from ..tables.kept_records import made_from_records, records_parser
from ..tables.plot_style import INK, ink, line_style, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES = ("largest", "attention_on_first", "dropped", "error")
"""What a record has of every block, for the first token and for all others."""
TITLES = {
    "largest": "largest |x| behind the block, dense",
    "attention_on_first": "attention on the first token, dense",
    "dropped": "input channels dropped",
    "error": "change of the residual stream ÷ its norm",
}


@dataclass(frozen=True)
class MassiveData:
    """Cells by model, method and sparsity."""

    cells: dict[Key, MeasuredCell]


def read_massive(folders: Iterable[Path]) -> MassiveData:
    """Read every cell of suite=massive. Raises UserError when there is none or they do not belong together."""
    cells = stored_cells(
        folders,
        place_of,
        keep=lambda record: record["suite"]["name"] == "massive",
        command="`python repro/run.py experiment=massive_real`",
    )
    check_comparable(cells.values())
    ordered = sorted(cells.items(), key=lambda pair: (pair[0][0], pair[0][2], method_rank(pair[0][1])))
    return MassiveData(dict(ordered))


def massive_rows(data: MassiveData) -> Iterator[dict[str, Any]]:
    """A row for each cell and block; what is measured on the dense model is the same for every method."""
    for (model, method, sparsity), cell in data.cells.items():
        details = cell.items["details"]
        for block in range(len(details["largest"])):
            row = {"model": model, "method": method, "sparsity": sparsity, "block": block}
            for measure in MEASURES:
                first, others = details[measure][block]
                row |= {f"{measure}_others": f"{others:.6g}"} | (
                    {} if measure == "attention_on_first" else {f"{measure}_first": f"{first:.6g}"}
                )
            yield row


def massive_figure(rows: list[Row]) -> Figure:
    """A panel a measure against the blocks: solid lines the first token, dashed ones all others."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 6.0), layout="constrained")
    panels = dict(zip(MEASURES, figure.subplots(2, 2, sharex=True).flat, strict=True))
    for place, (curve, mine) in enumerate(_curves(rows).items()):
        style = line_style(place) | {"marker": "", "linestyle": "-"}
        for measure in ("dropped", "error"):
            _draw(panels[measure], mine, measure, style, curve)
        if place == 0:
            for measure in ("largest", "attention_on_first"):
                _draw(panels[measure], mine, measure, style | {"color": INK}, "")
    for measure, axis in panels.items():
        axis.set(title=TITLES[measure], yscale="log" if measure in ("largest", "error") else "linear")
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("block (solid: first token; dashed: all others)")
    # Outside: inside of a panel it would lie on the curves.
    handles, names = panels["dropped"].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), fontsize=8)
    return figure


def _curves(rows: list[Row]) -> dict[str, list[Row]]:
    several = len({(row["model"], row["sparsity"]) for row in rows}) > 1
    curves: dict[str, list[Row]] = {}
    for row in rows:
        where = f"{row['model']} {float(row['sparsity']):.0%} " if several else ""
        curves.setdefault(f"{where}{row['method']}", []).append(row)
    return curves


def _draw(axis: Axes, rows: list[Row], measure: str, style: dict[str, Any], label: str) -> None:
    blocks = [int(row["block"]) for row in rows]
    for whose, line in (("first", "-"), ("others", "--")):
        if (name := f"{measure}_{whose}") in rows[0]:
            values = [float(row[name]) for row in rows]
            shown = label if whose == "first" else ""
            axis.plot(blocks, values, **style | {"linestyle": line}, label=shown or None)


def write_massive(data: MassiveData, output: Path) -> list[Path]:
    """Write OUTPUT.csv and draw it; returns the figure's files."""
    rows = list(massive_rows(data))
    table = csv_path(output)
    write_text(table, csv_text(list(rows[0]), rows))
    with ink(output.name):
        return write_figure(massive_figure(read_rows(table)), output)


@mistakes_in_one_line()
def main() -> None:
    """Make the figure from the records below some folders."""
    arguments = records_parser(main.__doc__, "path of the figure without its ending").parse_args()
    written = made_from_records(arguments, read_massive, lambda data: write_massive(data, arguments.output))
    for path in written:
        print(f"written: {path}")


if __name__ == "__main__":
    main()
