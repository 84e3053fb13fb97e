"""Benchmark data: a split of a data set, from a local mirror or from the Hugging Face hub."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet

from ...method.errors import UserError
from ..models.content_hash import FileState, states
from ..models.hub import check_hub_name, fetch_dataset_file, load_hub_split


def check_mirror(root: str) -> None:
    """Raise UserError for a mirror that is no folder; an empty name would be that of the current one."""
    if not root or not Path(root).expanduser().is_dir():
        raise UserError(
            f"data.root={root} is not a folder; give the one that holds FOLDER/SPLIT.parquet, or leave it out "
            "to read from the hub"
        )


@dataclass(frozen=True)
class DataSource:
    """A data set: its name on the hub, and its folder in a local mirror."""

    hub: str
    config: str | None
    folder: str
    file: str | None = None
    """One file of JSON lines in the hub's repository, where all of it would be too much; None: the split."""
    rows: int | None = None
    """Rows read from the beginning of that file."""

    def mirror_file(self, root: str, split: str) -> Path:
        """Where a mirror keeps a split; raises UserError naming the file that it lacks."""
        check_mirror(root)
        path = Path(root).expanduser() / self.folder / f"{split}.parquet"
        if not path.is_file():
            raise UserError(
                f"the mirror lacks {path} (on the hub: {self.hub}, split {split}); put it there, or leave "
                "data.root out to read from the hub"
            )
        return path


def load_split(source: DataSource, split: str, root: str | None) -> datasets.Dataset:
    """All rows of a split, from the mirror `root`, or from the hub where that is None.

    Raises UserError when the file is missing or damaged, or when the hub does not have or give it.
    """
    if root is not None:
        file = source.mirror_file(root, split)
        return _read_parquet(file, states([file]))
    return _load_from_hub(source, split)


def read_files(splits: Iterable[tuple[DataSource, str]], root: str | None) -> list[Path]:
    """The files of the mirror `root` that hold these splits; without one, none, and the hub's are fetched.

    Called before weights are loaded: raises UserError for what cannot be had.
    """
    if root is not None:
        return [source.mirror_file(root, split) for source, split in splits]
    for source, split in splits:
        load_split(source, split, None)
    return []


@lru_cache(maxsize=32)
def _read_parquet(path: Path, _state: tuple[FileState, ...]) -> datasets.Dataset:
    # Read by hand: `datasets` would keep a second copy of everything in the user's cache.
    try:
        return datasets.Dataset(pyarrow.parquet.read_table(path))
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is not a readable parquet file; fetch it again") from error


@lru_cache(maxsize=32)
def _load_from_hub(source: DataSource, split: str) -> datasets.Dataset:
    check_hub_name(source.hub)
    if source.file is None:
        return load_hub_split(source.hub, source.config, split)
    return read_json_lines(fetch_dataset_file(source.hub, source.file), source.rows)


def read_json_lines(path: Path, rows: int | None) -> datasets.Dataset:
    """The strings of the first `rows` objects of a file with one JSON object a line; .gz and .zst are unpacked.

    Raises UserError for a file that is damaged.
    """
    found = []
    try:
        # `datasets` reads .zst only with a further package; pyarrow brings both.
        with pyarrow.input_stream(str(path), compression="detect") as stream:
            for line in itertools.islice(io.TextIOWrapper(stream, "utf-8"), rows):
                found.append({key: value for key, value in json.loads(line).items() if isinstance(value, str)})
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is no file of JSON lines, or is truncated; fetch it again") from error
    return datasets.Dataset.from_list(found)


def lm_eval_dataset(
    source: dict[str, Any],
    splits: Sequence[str],
    root: str | None,
    columns: Mapping[str, str],
    column: str | None = None,
    value: str | None = None,
    **_metadata: object,
) -> dict[str, datasets.Dataset]:
    """Splits by name; an lm-eval task's configuration names this as its `custom_dataset`.

    `columns` are renamed where they are missing: the wanted name by the one that may be there, of numbers or
    truth values. With `column`, only the rows whose `column` is `value` (the subjects of MMLU).
    """
    found = {split: load_split(DataSource(**source), split, root) for split in splits}
    for wanted, other in columns.items():
        for split, rows in found.items():
            if wanted not in rows.column_names and other in rows.column_names:
                found[split] = rows.add_column(wanted, [int(entry) for entry in rows[other]])
    if column is None:
        return found
    for split, rows in found.items():
        if value not in _rows_by_value(rows, column):
            raise UserError(
                f"{source['hub']}, split {split}, has no row whose {column} is {value}; fetch it again"
            )
    return {split: rows.select(_rows_by_value(rows, column)[value]) for split, rows in found.items()}


@lru_cache(maxsize=8)
def _rows_by_value(rows: datasets.Dataset, column: str) -> dict[str, list[int]]:
    index: dict[str, list[int]] = {}
    for row, value in enumerate(rows[column]):
        index.setdefault(value, []).append(row)
    return index


def row_text(row: dict[str, Any]) -> str:
    """All strings of a row, its lists and sub-records included, in order, one a line."""
    return "\n".join(_strings(row))


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for entry in value for text in _strings(entry)] if isinstance(value, list) else []
