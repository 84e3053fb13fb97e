"""Tables from records: `python -m wisparse.repro.tables table1 --records FOLDER --output results/table1`.

Speed: `python -m wisparse.repro.tables speed --records FOLDER --output results/speed`. A question and its plot:
`python -m wisparse.repro.tables question --records outputs/question_alpha --output results/questions/alpha`.
"""

from __future__ import annotations

import argparse
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from ...method.errors import UserError
from ..configuration import mistakes_in_one_line
from ..measured.cells import MeasuredCell
from ..records import ITEMS, RECORD, UNREACHABLE, write_text
from .frontier_table import FRONTIER
from .full_size_table import FULL_SIZE
from .plot_style import ink, write_figure
from .question_table import QUESTION
from .speed_table import SPEED
from .table import Table
from .table1 import TABLE1
from .table2 import TABLE2

ARCHIVE = ".tar.xz"


class Cells(Protocol):
    """Interface of what a table is made of."""

    cells: dict[Any, MeasuredCell]


TABLES: dict[str, Table[Any]] = {
    table.name: table for table in (TABLE1, TABLE2, FRONTIER, QUESTION, FULL_SIZE, SPEED)
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

    `target` is a folder, or a .tar.xz where hundreds of cells are seldom looked at one by one.
    """
    staging = target.with_name(f".{target.name}-new")
    shutil.rmtree(staging, ignore_errors=True)
    for cell in data.cells.values():
        folder = staging / cell.folder.name
        folder.mkdir(parents=True)
        for name in (RECORD, ITEMS):
            shutil.copyfile(cell.folder / name, folder / name)
    for path in sorted(path for source in sources for path in source.rglob(UNREACHABLE)):
        folder = staging / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / UNREACHABLE)
    if target.name.endswith(ARCHIVE):
        shutil.make_archive(str(target).removesuffix(ARCHIVE), "xztar", staging)
        shutil.rmtree(staging)
    else:
        shutil.rmtree(target, ignore_errors=True)
        staging.rename(target)


@contextmanager
def record_folders(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """Folders of records; those that are kept as a .tar.xz are unpacked for the time being."""
    with TemporaryDirectory() as unpacked:
        folders = []
        for number, path in enumerate(paths):
            folder = path
            if path.name.endswith(ARCHIVE):
                folder = Path(unpacked) / str(number)
                try:
                    _unpack(path, folder)
                except (OSError, EOFError, tarfile.TarError) as error:
                    raise UserError(f"{path} cannot be unpacked ({error})") from error
            folders.append(folder)
        yield folders


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as opened:
        # Early releases of Python 3.10 and 3.11 know no filters, and take no argument of that name.
        opened.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        opened.extractall(folder)


def main() -> None:
    """Make a table from the records below a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument(
        "--records",
        type=Path,
        nargs="+",
        required=True,
        help="folder with record.json files, or such a folder as .tar.xz; frontier: several",
    )
    parser.add_argument("--output", type=Path, required=True, help="path of the table without .md and .csv")
    parser.add_argument(
        "--keep-records", type=Path, help="copy the records that were used here: a folder, or a .tar.xz"
    )
    arguments = parser.parse_args()
    table = TABLES[arguments.table]
    if len(arguments.records) > 1 and arguments.table != "frontier":
        parser.error(f"{arguments.table} is made from one folder of records")
    with mistakes_in_one_line(), record_folders(arguments.records) as folders:
        data = table.read(*folders)
        write_tables(table, data, arguments.output)
        kept = arguments.keep_records
        if kept and kept.resolve() not in [path.resolve() for path in arguments.records]:
            keep_records(data, folders, kept)
    print(arguments.output.with_name(f"{arguments.output.name}.md").read_text(encoding="utf-8"))
    print(f"written: {arguments.output}.md and {arguments.output}.csv")


if __name__ == "__main__":
    main()
