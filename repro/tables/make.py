"""Tables from records: `python -m wisparse.repro.tables table1 --records FOLDER --output results/table1`.

Speed: `python -m wisparse.repro.tables speed --records FOLDER --output results/speed`. A question and its plot:
`python -m wisparse.repro.tables question --records outputs/question_alpha --output results/questions/alpha`.
"""

from __future__ import annotations

import argparse
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

from ...method.errors import UserError
from ..configuration import mistakes_in_one_line
from ..records import ITEMS, RECORD, UNREACHABLE, write_text
from .cells import MeasuredCell, read_table
from .frontier import read_frontier
from .frontier_table import frontier_csv, frontier_markdown
from .full_size_table import full_size_csv, full_size_markdown, read_full_size
from .plot_style import ink, write_figure
from .question_data import read_question
from .question_table import question_csv, question_figure, question_markdown
from .speed_table import read_speed, speed_csv, speed_markdown
from .table1 import table1_csv, table1_markdown
from .table2 import read_ablation, table2_csv, table2_markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


ARCHIVE = ".tar.xz"


class Cells(Protocol):
    """Interface of what a table is made of."""

    cells: dict[Any, MeasuredCell]


@dataclass(frozen=True)
class Table:
    """How one table is read and written."""

    read: Callable[..., Cells]
    markdown: Callable[[Any], str]
    comma_separated: Callable[[Any], str]
    figure: Callable[[Any], Figure] | None = None


TABLES = {
    "table1": Table(read_table, table1_markdown, table1_csv),
    "table2": Table(read_ablation, table2_markdown, table2_csv),
    "frontier": Table(read_frontier, frontier_markdown, frontier_csv),
    "question": Table(read_question, question_markdown, question_csv, question_figure),
    "full_size": Table(read_full_size, full_size_markdown, full_size_csv),
    "speed": Table(read_speed, speed_markdown, speed_csv),
}


def write_tables(table: Table, data: Cells, output: Path) -> None:
    """Write OUTPUT.md and OUTPUT.csv, and OUTPUT.png and .svg of a table with a figure."""
    write_text(output.with_name(f"{output.name}.md"), table.markdown(data))
    write_text(output.with_name(f"{output.name}.csv"), table.comma_separated(data))
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
