"""Arguments of what makes tables and figures from records, and the records that are kept beside them."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ...kernels.shared_files import beside
from ..archive import check_keepable, keep, read_from, stored_files
from ..measured.cells import MeasuredCell
from ..records import ITEMS, RECORD, UNREACHABLE


class Cells(Protocol):
    """Interface of what a table is made of."""

    cells: dict[Any, MeasuredCell]


Data = TypeVar("Data", bound=Cells)
Written = TypeVar("Written")


def records_parser(description: str | None, output: str) -> argparse.ArgumentParser:
    """Parser with --records, --keep-records and --output, whose help says what of."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--records",
        type=Path,
        nargs="+",
        required=True,
        help="folders with record.json files, or such folders as .tar.xz; some tables take one alone",
    )
    parser.add_argument("--output", type=Path, required=True, help=output)
    parser.add_argument(
        "--keep-records", type=Path, help="keep the records that were used here: a .tar.xz, or a folder"
    )
    return parser


def made_from_records(
    arguments: argparse.Namespace, read: Callable[[list[Path]], Data], write: Callable[[Data], Written]
) -> Written:
    """What `write` makes of the records that `read` finds, which are kept where that was asked for.

    Raises UserError as these and `keep_records` do.
    """
    check_keepable(arguments.keep_records, arguments.records)
    data = read(arguments.records)
    written = write(data)
    if arguments.keep_records:
        keep_records(data, arguments.records, arguments.keep_records)
    return written


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
