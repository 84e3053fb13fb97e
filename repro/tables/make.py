"""Tables from records: `python -m wisparse.repro.tables table1 --records FOLDER --output results/table1`.

Speed: `python -m wisparse.repro.tables speed --records FOLDER --output results/speed`. A question and its plot:
`python -m wisparse.repro.tables question --records outputs/question_alpha --output results/questions/alpha`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from ...kernels.shared_files import beside
from ..archive import check_keepable, keep, read_from, stored_files
from ..configuration import mistakes_in_one_line
from ..measured.cells import MeasuredCell
from ..record_facts import suite_choice
from ..records import ITEMS, RECORD, UNREACHABLE, write_text
from .against_bytes.frontier_table import FRONTIER
from .against_bytes.generation_table import GENERATION
from .against_bytes.given_loss_table import GIVEN_LOSS
from .against_bytes.own_table import OWN
from .against_bytes.quantised_table import QUANTISED
from .against_bytes.real_frontier_table import REAL_FRONTIER
from .full_size_table import FULL_SIZE
from .heads_table import HEADS
from .plot_style import ink, write_figure
from .questions.question_table import QUESTION
from .real_table import READINGS, REAL
from .speed.speed_table import SPEED
from .table import Table
from .table1 import TABLE1
from .table2 import TABLE2


class Cells(Protocol):
    """Interface of what a table is made of."""

    cells: dict[Any, MeasuredCell]


TABLES: dict[str, Table[Any]] = {
    table.name: table
    for table in (
        TABLE1,
        TABLE2,
        REAL,
        READINGS,
        OWN,
        FRONTIER,
        REAL_FRONTIER,
        GENERATION,
        GIVEN_LOSS,
        QUANTISED,
        HEADS,
        QUESTION,
        FULL_SIZE,
        SPEED,
    )
}
"""Every table by its name: for the command line, the report and whoever measures."""


def write_tables(table: Table[Any], data: Cells, output: Path) -> None:
    """Write OUTPUT.md and OUTPUT.csv, and OUTPUT.png and .svg of a table with a figure."""
    write_text(output.with_name(f"{output.name}.md"), table.markdown(data))
    write_text(output.with_name(f"{output.name}.csv"), table.csv(data))
    if table.figure is not None:
        with ink(output.name):
            write_figure(table.figure(data), output)


def keep_records(data: Cells, sources: Iterable[Path], target: Path) -> None:
    """Copy what a table or figure is made of, so that it can be made again from `target` alone.

    `target` is an archive (.tar.xz) or a folder; what was kept there in the other form goes. Records that are
    read from there stay as they are. Raises UserError where anything else would be lost; see `keep`.
    """
    sources = list(sources)
    if read_from(target, sources):
        return
    staging = beside(target)
    try:
        _copy(data, sources, staging)
        keep(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _copy(data: Cells, sources: Iterable[Path], staging: Path) -> None:
    for cell in data.cells.values():
        folder = _free(staging / cell.folder.name)
        folder.mkdir(parents=True)
        for name in (RECORD, ITEMS):
            shutil.copyfile(cell.folder / name, folder / name)
    for path in sorted(path for source in sources for path in stored_files(source, UNREACHABLE)):
        folder = staging / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / UNREACHABLE)


def _free(folder: Path) -> Path:
    """The folder, or one named after it where it is taken: by the same cell under another search budget."""
    others = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return folder if not folder.exists() else next(other for other in others if not other.exists())


def _part_of_records(text: str) -> tuple[str, str]:
    group, _, name = text.partition("=")
    if group not in ("suite", "protocol", "search") or not name:
        raise argparse.ArgumentTypeError(f"'{text}' is none of suite=NAME, protocol=NAME, search=NAME")
    return group, name


def _kept(where: dict[str, str]) -> dict[str, Any]:
    """The argument of a table's `read` that keeps the records with these names; none where all are kept."""

    def keep(record: dict[str, Any]) -> bool:
        found = {group: record["config"][group]["name"] for group in where if group != "suite"}
        found["suite"] = suite_choice(record["suite"]["name"])
        return where.items() <= found.items()

    return {"keep": keep} if where else {}


def main() -> None:
    """Make a table from the records below a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument(
        "--records",
        type=Path,
        nargs="+",
        required=True,
        help="folder with record.json files, or such a folder as .tar.xz; some tables take several",
    )
    parser.add_argument("--output", type=Path, required=True, help="path of the table without .md and .csv")
    parser.add_argument(
        "--keep-records", type=Path, help="keep the records that were used here: a .tar.xz, or a folder"
    )
    parser.add_argument(
        "--where",
        nargs="+",
        default=[],
        type=_part_of_records,
        metavar="GROUP=NAME",
        help="frontiers, quantised, heads: records of these alone, such as suite=wikitext protocol=half",
    )
    arguments = parser.parse_args()
    table = TABLES[arguments.table]
    if arguments.where and table not in (FRONTIER, REAL_FRONTIER, QUANTISED, HEADS):
        parser.error("--where chooses records of the frontiers, quantised and heads alone")
    of_several = (FRONTIER, REAL_FRONTIER, GENERATION, GIVEN_LOSS, QUANTISED, HEADS, REAL, READINGS, OWN)
    if len(arguments.records) > 1 and table not in of_several:
        parser.error(f"{arguments.table} is made from one folder of records")
    with mistakes_in_one_line():
        check_keepable(arguments.keep_records, arguments.records)
        data = table.read(*arguments.records, **_kept(dict(arguments.where)))
        write_tables(table, data, arguments.output)
        if arguments.keep_records:
            keep_records(data, arguments.records, arguments.keep_records)
    print(arguments.output.with_name(f"{arguments.output.name}.md").read_text(encoding="utf-8"))
    print(f"written: {arguments.output}.md and {arguments.output}.csv")


if __name__ == "__main__":
    main()
