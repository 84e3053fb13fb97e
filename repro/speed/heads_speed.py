"""Speed of attention over chosen key-value groups: the benchmark's lines as a table.

python -m wisparse.kernels.bench.gpu_heads > heads.jsonl
python -m wisparse.repro.speed.heads_speed heads.jsonl --output results/heads_speed

With the table before the lines (results/heads_speed.csv heads.jsonl) its rows stay, but those measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ...kernels.bench.gpu_heads import HeadSpeed
from ...method.errors import UserError
from ..configuration import mistakes_in_one_line
from ..tables.csv_rows import read_rows, write_table
from ..tables.table import PERCENT, Column, Table, number
from ..tables.text import introduced

PARTS = {"attention": "attention of one block", "step": "whole step"}
"""Parts in order, and what people are told."""
MASKED = {"none": "", "ffn": "FFN", "all": "all"}
"""Projections under the mask that the batch shares, in order, and what people are told."""
DIGITS = {"us": 2, "gb_s": 3, "peak_gb_s": 3}
"""Digits that the table keeps, and a row from the start: so the table that is made of itself is the same."""


@dataclass(frozen=True)
class Measured:
    """A row, the one of all groups under the same mask, and the dense one, in the same run."""

    row: HeadSpeed
    whole: HeadSpeed | None
    dense: HeadSpeed | None

    @property
    def speedup(self) -> float | None:
        """Time with all groups over time with those that are kept; None for all groups themselves."""
        return _ratio(self.whole, self.row)

    @property
    def over_dense(self) -> float | None:
        """Time with all groups and weights over this; None for the dense step itself."""
        return _ratio(self.dense, self.row)

    @property
    def tok_s(self) -> float | None:
        """Tokens a second of all rows; None of attention alone."""
        return 1e6 * self.row.batch / self.row.us if self.row.part == "step" else None


def _ratio(before: HeadSpeed | None, row: HeadSpeed) -> float | None:
    return None if before is None or before is row else before.us / row.us


def read_measured(paths: Sequence[Path]) -> list[HeadSpeed]:
    """Rows of the benchmark's lines and of tables made of them; of one that was measured again the last.

    Raises UserError for another file.
    """
    found = {}
    for path in paths:
        read = _table_rows if path.suffix == ".csv" else _lines
        try:
            for row in read(path):
                place = row.device, row.shape, row.part, row.batch, row.context
                found[(*place, row.kept, row.masked, row.sparsity)] = row
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} holds no lines of wisparse.kernels.bench.gpu_heads ({error})") from error
    if not found:
        names = ", ".join(map(str, paths))
        raise UserError(f"{names}: empty; write the lines of wisparse.kernels.bench.gpu_heads into it")
    return list(found.values())


def _lines(path: Path) -> Iterator[HeadSpeed]:
    for line in path.read_text(encoding="utf-8").splitlines():
        row = HeadSpeed(**json.loads(line))
        yield replace(row, **{name: round(getattr(row, name), digits) for name, digits in DIGITS.items()})


def _table_rows(path: Path) -> Iterator[HeadSpeed]:
    kinds = {"int": int, "float": float, "str": str}
    for row in read_rows(path):
        yield HeadSpeed(**{field.name: kinds[field.type](row[field.name]) for field in fields(HeadSpeed)})


def entries(rows: Iterable[HeadSpeed]) -> Iterator[Measured]:
    """Rows by part, batch, context, mask and groups, each beside those that it is compared with."""
    rows = list(rows)

    def place(row: HeadSpeed) -> tuple[str | int, ...]:
        return row.device, row.shape, [*PARTS].index(row.part), row.batch, row.context

    def mask(row: HeadSpeed) -> tuple[int, float]:
        return [*MASKED].index(row.masked), row.sparsity

    whole = {(*place(row), *mask(row)): row for row in rows if row.kept == row.groups}
    for row in sorted(rows, key=lambda row: (*place(row), *mask(row), -row.kept)):
        yield Measured(row, whole.get((*place(row), *mask(row))), whole.get((*place(row), 0, 0.0)))


def columns(_: Sequence[str]) -> list[Column[Measured]]:
    """Columns in the order of the CSV."""
    return [
        Column("device", "Device", lambda entry: entry.row.device),
        Column("shape", "Shape", lambda entry: entry.row.shape),
        Column("part", "Part", lambda entry: entry.row.part, form=PARTS.__getitem__),
        Column("batch", "Batch", lambda entry: entry.row.batch),
        Column("context", "Context", lambda entry: entry.row.context),
        Column("kept", "Groups", lambda entry: entry.row.kept),
        Column("groups", "", lambda entry: entry.row.groups),
        Column("masked", "Batch-shared mask", lambda entry: entry.row.masked, form=MASKED.__getitem__),
        Column("sparsity", "Sparsity", lambda entry: entry.row.sparsity, 4, PERCENT),
        Column("us", "µs", lambda entry: entry.row.us, DIGITS["us"], number(1)),
        Column("tok_s", "tok/s", lambda entry: entry.tok_s, 2, number(0)),
        Column("gb_s", "GB/s", lambda entry: entry.row.gb_s, DIGITS["gb_s"], number(0)),
        Column("share_of_bandwidth", "of bandwidth", lambda entry: entry.row.gb_s / entry.row.peak_gb_s, 4,
               PERCENT),
        Column("speedup", "over all groups", lambda entry: entry.speedup, 4, number(2, end="×")),
        Column("over_dense", "over dense", lambda entry: entry.over_dense, 4, number(2, end="×")),
        Column("peak_gb_s", "", lambda entry: entry.row.peak_gb_s, DIGITS["peak_gb_s"]),
        Column("tile", "", lambda entry: entry.row.tile),
    ]  # fmt: skip


def above(rows: list[HeadSpeed]) -> str:
    """Title, and what the columns mean."""
    peaks = {}
    for row in rows:
        peaks.setdefault((row.device, row.shape, row.groups), set()).add(row.peak_gb_s)
    lines = [
        *(
            f"{device}, {shape}'s shape with random weights, {groups} key-value groups. Measured bandwidth: "
            f"{' to '.join(dict.fromkeys(f'{peak:,.1f}' for peak in (min(found), max(found))))} GB/s."
            for (device, shape, groups), found in sorted(peaks.items())
        ),
        "Attention of one block: caches are cold. GB/s: keys and values that are looked at.",
        "Whole step: a token of every row, routers included, block 0 looks at all groups; products have tiles "
        "that are not tuned. GB/s: all weights, and keys and values that are looked at.",
        "Batch-shared mask: one top-k of the channels for all rows, in every block, of gate, up and down (FFN) "
        "or of all projections, by the kernels over its lists; on a GPU the engine computes those of "
        "attention, and all of more than eight rows, densely. Of one row it is that row's own.",
        "Over all groups: time of the same launches over all groups, under the same mask, over this. Over "
        "dense: time with all groups and no mask, over this.",
    ]
    return introduced("# Speed of attention over chosen key-value groups", lines)


SPEED_OF_HEADS = Table(
    name="heads_speed",
    title="Speed of attention over chosen key-value groups",
    command="python -m wisparse.kernels.bench.gpu_heads",
    read=read_measured,
    entries=entries,
    columns=columns,
    above=above,
)


@mistakes_in_one_line()
def main() -> None:
    """Write OUTPUT.csv and OUTPUT.md from the benchmark's lines."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "measured", type=Path, nargs="+", help="what wisparse.kernels.bench.gpu_heads prints, and tables of it"
    )
    parser.add_argument("--output", type=Path, required=True, help="path of the table without .md and .csv")
    arguments = parser.parse_args()
    rows = SPEED_OF_HEADS.read(arguments.measured)
    write_table(arguments.output, SPEED_OF_HEADS.csv(rows), SPEED_OF_HEADS.markdown(rows))


if __name__ == "__main__":
    main()
