"""What more calibration text gains: methods on several amounts of one text, at the bytes of TEAL on most of it.

python -m wisparse.repro.tables text_amounts --output results/real/text_amounts \
    --records results/real/records/method_text results/real/records/text_amounts
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from ...measured.cells import MeasuredCell, is_trained, mean_of_records, method_rank
from ...measured.comparison import Between, at_equal_bytes, bytes_of
from ...measured.paired_bootstrap import Interval
from ...measured.real_cells import RealData, Section, read_text_amounts
from ...measured.rise import Rises, mean_of
from ..accuracy import BYTES, PERPLEXITY, REALISED
from ..table import PERCENT, Column, Table, number
from ..text import headed, introduced, settings_lines


@dataclass(frozen=True)
class Amount:
    """A method at a sparsity on one amount of text: the mean over its seeds."""

    data: RealData
    section: Section
    """Its `text` is the tokens."""
    method: str
    sparsity: float

    @cached_property
    def cells(self) -> dict[int, MeasuredCell]:
        """Cells by seed."""
        wanted = self.section, self.method, self.sparsity
        return {place[-1]: cell for place, cell in self.data.cells.items() if place[:3] == wanted}

    def of_record(self, *path: str) -> float | None:
        """The mean of a number of the records by its place there."""
        return mean_of_records(self.cells.values(), *path)

    @property
    def rise_share(self) -> Interval | None:
        """Rise over dense as a share of the reference's on the largest amount, at the bytes that are read.

        None where its cells of no seed enclose them.
        """
        most = max(
            (place[0] for place in self.data.cells if place[0][:-1] == self.section[:-1]),
            key=lambda section: int(section.text),
        )
        dense, found = self.data.dense(self.section), []
        if dense is None:
            return None
        rises = Rises(self.data.comparison(self.section), dense)
        for seed, cell in self.cells.items():
            curve = self.data.curve(most, self.data.reference, seed)
            point = at_equal_bytes(curve, bytes_of(cell)) if curve else None
            if isinstance(point, Between):
                found.append(rises.share(cell, point))
        return mean_of(found) if found else None


def amounts(data: RealData) -> Iterator[Amount]:
    """Rows of what was measured on several amounts, from the smallest to the largest."""
    by_curve: dict[tuple[object, ...], dict[int, Amount]] = {}
    for section, method, sparsity, _ in data.cells:
        curve = *section[:-1], sparsity, method_rank(method)
        by_curve.setdefault(curve, {})[int(section.text)] = Amount(data, section, method, sparsity)
    for _, found in sorted(by_curve.items()):
        if len(found) > 1:
            yield from (found[tokens] for tokens in sorted(found))


def columns(_: Sequence[str]) -> list[Column[Amount]]:
    """Columns in the order of the CSV."""
    return [
        Column("model", "Model", lambda entry: entry.section.model),
        Column("suite", "Suite", lambda entry: entry.section.suite),
        Column("protocol", "Protocol", lambda entry: entry.section.protocol),
        Column("method", "Method", lambda entry: entry.method),
        Column("trained", "Trained", lambda entry: any(map(is_trained, entry.cells.values()))),
        Column("sparsity", "Sparsity", lambda entry: entry.sparsity, form=PERCENT),
        Column("tokens", "Tokens of text", lambda entry: int(entry.section.text), form=number(0)),
        Column("seeds", "Seeds", lambda entry: len(entry.cells)),
        REALISED,
        BYTES,
        PERPLEXITY,
        Column("rise_share", "Rise ÷ the reference's on most text", lambda entry: entry.rise_share, 4,
               number(3), bounds=True),
    ]  # fmt: skip


def above(data: RealData) -> str:
    """How the columns are read, and the settings."""
    cells = list(data.cells.values())
    lines = (
        f"Rise: perplexity minus that of the dense model, as a share of that of `{data.reference}` with the "
        "largest amount of the same text, at the bytes that the row's cells read; brackets: 95 % bootstrap "
        "intervals.",
        "A smaller amount is the beginning of a larger one, of each text that it is joined of.",
        *settings_lines(cells),
    )
    return introduced(headed("# How much calibration text", cells), lines)


TEXT_AMOUNTS = Table(
    name="text_amounts",
    title="How much calibration text",
    command="python repro/run.py experiment=method_text experiment_name=text_amounts",
    read=read_text_amounts,
    entries=amounts,
    columns=columns,
    above=above,
)
