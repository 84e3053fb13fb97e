"""WiSparse's figures from records, and the page that shows them.

python -m wisparse.repro.figures --records FOLDER ... --output results/figures

Writes OUTPUT/figureN.csv, from each of them OUTPUT/figureN.png and OUTPUT/figureN.svg, and the page OUTPUT.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..configuration import REPOSITORY, mistakes_in_one_line
from ..records import write_text
from ..tables.csv_rows import Row, csv_text, read_rows
from ..tables.kept_records import made_from_records, records_parser
from ..tables.plot_style import ink, write_figure
from .page import page
from .plots import allocation_figure, alpha_figure, cost_figure, mismatch_figure, one_block_figure
from .rows import (
    FigureRecords,
    allocation_rows,
    alpha_rows,
    cost_rows,
    mismatch_rows,
    one_block_rows,
    read_figures,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPEED = REPOSITORY / "results" / "speed.csv"


@dataclass(frozen=True)
class PaperFigure:
    """How one figure is read from records and drawn from its CSV."""

    rows: Callable[[FigureRecords], Iterable[dict[str, object]]]
    draw: Callable[[list[Row]], Figure]


FIGURES = {
    "figure2": PaperFigure(mismatch_rows, mismatch_figure),
    "figure3": PaperFigure(one_block_rows, one_block_figure),
    "figure4": PaperFigure(lambda records: records.timed(cost_rows(SPEED)), cost_figure),
    "figure5": PaperFigure(allocation_rows, allocation_figure),
    "figure6": PaperFigure(alpha_rows, alpha_figure),
}


def write_csv(rows: Iterable[dict[str, object]], path: Path) -> bool:
    """Write the rows, columns in order of appearance; False, and no file, where there is none."""
    rows = list(rows)
    if not rows:
        path.unlink(missing_ok=True)
        return False
    columns = list(dict.fromkeys(column for row in rows for column in row))
    write_text(path, csv_text(columns, rows))
    return True


def draw(name: str, folder: Path) -> list[Path]:
    """Draw FOLDER/NAME.csv beside it; returns what was written."""
    rows = read_rows(folder / f"{name}.csv")
    # Ids in an SVG must differ from those of the same figure of other models on one page.
    with ink(f"{name} {' '.join(dict.fromkeys(row['model'] for row in rows))}"):
        return write_figure(FIGURES[name].draw(rows), folder / name)


def write_figures(records: FigureRecords, output: Path) -> list[str]:
    """Write every figure and the page; returns the names of those there are records for."""
    tables = {name: output / f"{name}.csv" for name in FIGURES}
    written = [name for name, table in tables.items() if write_csv(FIGURES[name].rows(records), table)]
    for name in written:
        draw(name, output)
    write_text(output.with_name(f"{output.name}.md"), page(records, output, list(FIGURES)))
    return written


@mistakes_in_one_line()
def main() -> None:
    """Make the figures from the records below some folders."""
    arguments = records_parser(main.__doc__, "folder to write into; the page is OUTPUT.md").parse_args()
    written = made_from_records(
        arguments, read_figures, lambda records: write_figures(records, arguments.output)
    )
    for name in written:
        print(f"written: {arguments.output / name}.csv, .png and .svg")
    print(f"written: {arguments.output}.md")


if __name__ == "__main__":
    main()
