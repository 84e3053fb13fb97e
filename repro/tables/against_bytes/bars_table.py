r"""What was aimed at with own methods beside what was reached, at equal bytes against the best published one.

python -m wisparse.repro.tables bars --output results/real/bars --records results/real/records/table1 \
    results/real/records/method results/real/records/method_text \
    results/records/frontier results/records/frontier_own results/records/frontier_own_all
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ...measured.best_published import AgainstPublished, against_best, published, published_trained
from ...measured.cells import MeasuredCell
from ...measured.paired_bootstrap import Interval
from ...measured.real_cells import RealData, Section, read_aimed
from ..table import PERCENT, Column, Table, is_number, number
from ..text import NOT_MEASURED, introduced
from .real_rows import INCOMPARABLE

AIMS: Mapping[bool, Mapping[float, float]] = {False: {0.5: 0.7, 0.6: 0.65}, True: {0.5: 0.55, 0.6: 0.5}}
"""Largest share of the best published method's rise by sparsity, of what is lightly trained and what is not."""
BUDGETS = {"embedded": "paper"}
"""Search budget of the cells that are compared, by suite."""
BUDGET = "medium"
"""Search budget of the other suites."""
REAL = tuple(
    ("smollm2-135m", suite, protocol) for suite in ("wikitext", "english") for protocol in ("half", "all")
)
MINI = tuple(
    (model, "embedded", protocol)
    for protocol in ("half", "all")
    for model in ("llama-mini", "mistral-mini", "qwen-mini")
)
"""Where the aims are of the real model and of the small ones: model, suite, protocol."""


class Aimed(NamedTuple):
    """A method with an aim, and where."""

    method: str
    trained: bool
    text: str
    """Calibration text."""
    places: tuple[tuple[str, str, str], ...]


AIMED = (
    Aimed("equal_loss_folded", False, "english", REAL),
    Aimed("equal_loss_folded_long", False, "english_wikitext", REAL),
    Aimed("equal_loss_folded_brief", False, "english_wikitext", REAL),
    Aimed("equal_loss_folded_given", False, "unseen", MINI),
    Aimed("equal_loss_trained", True, "english", REAL),
    Aimed("equal_loss_trained_long", True, "english_wikitext", REAL),
    Aimed("equal_loss_trained_given", True, "unseen", MINI),
)


@dataclass(frozen=True)
class Bar:
    """One aim, and the cells that it is of."""

    data: RealData
    aimed: Aimed
    section: Section
    sparsity: float

    @property
    def aim(self) -> float:
        """Largest share of the rise that was aimed at."""
        return AIMS[self.aimed.trained][self.sparsity]

    @cached_property
    def cells(self) -> list[MeasuredCell]:
        """Cells of the method, one a seed."""
        wanted = self.section, self.aimed.method, self.sparsity
        return [cell for place, cell in self.data.cells.items() if place[:3] == wanted]

    @cached_property
    def found(self) -> AgainstPublished | None:
        """Against the published method that loses least at the bytes: by which the aim is met or missed.

        What trains nothing is held against what trains nothing, what is lightly trained against all.
        """
        trained = () if self.aimed.trained else published_trained(self.data, self.section)
        return self._against(name for name in published(self.data, self.section) if name not in trained)

    @cached_property
    def beside_trained(self) -> AgainstPublished | str | None:
        """Against published methods that are trained; None where none was measured."""
        trained = published_trained(self.data, self.section)
        return (self._against(trained) or INCOMPARABLE) if trained and self.cells else None

    def _against(self, among: Iterable[str]) -> AgainstPublished | None:
        return against_best(self.data, self.section, self.aimed.method, self.sparsity, among)

    @property
    def tokens(self) -> int | None:
        """Tokens of the calibration text."""
        found = [cell.record["calibration"] for cell in self.cells]
        return found[0]["sequences"] * found[0]["length"] if found else None

    @property
    def verdict(self) -> str:
        """Whether the aim was met: by the mean share, and with an accuracy that is not surely lower.

        Open where what is lightly trained met it, but for trained methods that are not comparable there.
        """
        if not self.cells:
            return NOT_MEASURED
        if self.found is None:
            return INCOMPARABLE
        accuracy = self.found.average_difference
        met = self.found.rise_share.value <= self.aim and (accuracy is None or accuracy.high >= 0)
        open_beside = self.aimed.trained and self.beside_trained == INCOMPARABLE
        return ("open" if open_beside else "met") if met else "missed"


def bars(data: RealData) -> Iterator[Bar]:
    """Every aim, measured or not, in the order of the table."""
    for aimed in AIMED:
        for model, suite, protocol in aimed.places:
            section = Section(model, suite, protocol, BUDGETS.get(suite, BUDGET), aimed.text)
            yield from (Bar(data, aimed, section, sparsity) for sparsity in AIMS[aimed.trained])


def _beside_trained(bar: Bar) -> Interval | str | None:
    found = bar.beside_trained
    return found.rise_share if isinstance(found, AgainstPublished) else found


def _number_or_reason(text: str) -> str:
    return number(3)(text) if is_number(text) else text


def columns(_: Sequence[str]) -> list[Column[Bar]]:
    """Columns in the order of the CSV."""
    return [
        Column("model", "Model", lambda bar: bar.section.model),
        Column("suite", "Suite", lambda bar: bar.section.suite),
        Column("protocol", "Protocol", lambda bar: bar.section.protocol),
        Column("method", "Method", lambda bar: bar.aimed.method),
        Column("trained", "Trained", lambda bar: "yes" if bar.aimed.trained else "no"),
        Column("calibration", "Calibration", lambda bar: bar.section.text),
        Column("calibration_tokens", "Tokens of it", lambda bar: bar.tokens, form=number(0)),
        Column("sparsity", "Sparsity", lambda bar: bar.sparsity, form=PERCENT),
        Column("aim", "Aimed at", lambda bar: bar.aim, form=number(2)),
        Column("seeds", "Seeds", lambda bar: len(bar.found.seeds) if bar.found else None),
        Column("published", "Best published", lambda bar: bar.found.published if bar.found else None),
        Column("rise_share", "Rise ÷ its", lambda bar: bar.found.rise_share if bar.found else None, 4,
               number(3), bounds=True),
        Column("average_minus_published", "Average − its",
               lambda bar: bar.found.average_difference if bar.found else None, 4, number(2, sign="+"),
               bounds=True),
        Column("rise_share_of_trained", "Rise ÷ trained SPON's", _beside_trained, 4, _number_or_reason,
               bounds=True),
        Column("verdict", "Aim", lambda bar: bar.verdict),
    ]  # fmt: skip


LINES = (
    "Rise: perplexity minus that of the dense model, as a share of the rise of the published method that loses "
    "least at the very bytes that the row's cells read, of the same calibration text and seed: log-linear "
    "between its own cells, nothing extrapolated. Means over the seeds; brackets: 95 % bootstrap intervals.",
    "Published are all methods of others that were measured there and whose cells enclose the bytes, readings "
    "and variants too. A method with one cell is compared at its very bytes alone. What trains nothing is held "
    "against what trains nothing, and stands beside SPON, which is trained, in a column of its own; what is "
    "lightly trained is held against all, SPON too, where its cells enclose the bytes.",
    "Met: the mean share is at most what was aimed at, and the interval of the mean accuracy does not lie "
    "wholly below the published method's. Open: so it is, but SPON, whose cells do not enclose the bytes, may "
    "lose less than the published method.",
)


BARS = Table(
    name="bars",
    title="What was aimed at, and what was reached",
    command="python repro/run.py experiment=method_text",
    read=read_aimed,
    entries=bars,
    columns=columns,
    above=lambda data: introduced("# What was aimed at with own methods, and what was reached", LINES),
)
