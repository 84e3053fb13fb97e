"""Cells on a real model, under several suites, protocols, search budgets and seeds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ...method.errors import UserError
from ..record_facts import is_pruned, suite_choice
from .cells import Key, MeasuredCell, method_rank, place_of, stored_cells, tasks_of, unreachable_sparsities
from .comparable import check_comparable, check_same_items, without_seed
from .comparison import Comparison, LatestComparison
from .deciding import check_names, has_own_weights, heads_of
from .head_cells import key_values_left_out
from .pruned_cells import pruned_or_method


class Section(NamedTuple):
    """What the cells of one part of the page share."""

    model: str
    suite: str
    protocol: str
    budget: str
    text: str = ""
    """Calibration text, of tables that tell several apart."""


READING = "wisparse_"
"""How the names of readings of WiSparse's paper begin."""
BESIDE_READINGS = ("teal", "teal_uniform", "teal_calibration_mix", "wisparse")
"""Methods that readings are shown beside."""

OWN = ("equal_loss", "equal_error", "spon", "teal_folded")
"""How the names of this project's methods begin, of the rival that is trained as they are, and of controls."""
NEW = tuple(f"equal_loss_{kind}{text}" for kind in ("folded", "trained") for text in ("", "_given", "_long"))
"""Methods that a part of the page is about."""
BESIDE_OWN = ("teal", "wina", "wisparse", "wisparse_tokens_protocol")
"""Published methods that they are shown beside."""

Place = tuple[Section, str, float, int]
"""Section, method, nominal sparsity, seed."""
Value = TypeVar("Value")


@dataclass(frozen=True)
class RealData:
    """Cells by place, in the order of the table."""

    cells: dict[Place, MeasuredCell]
    unreachable: dict[Key, float] = field(default_factory=dict)
    """Largest sparsity that a method reaches on a model, for cells beyond it."""
    reference: str = "teal"
    """The method that others are compared with."""
    _comparisons: LatestComparison = field(default_factory=LatestComparison, repr=False)

    @cached_property
    def sections(self) -> list[Section]:
        """Sections with anything sparse, those of one suite together."""
        return _distinct(section for section, method, *_ in self.cells if method != "dense")

    @cached_property
    def tasks(self) -> list[str]:
        """Tasks of every suite."""
        return tasks_of(self.cells.values())

    def cells_of(self, section: Section) -> dict[Place, MeasuredCell]:
        """Cells of a section, the dense one among them."""
        return {place: cell for place, cell in self.cells.items() if place[0] == section}

    def dense(self, section: Section) -> MeasuredCell | None:
        """The model without sparsity on the suite, of the section where it is there.

        Neither seed, protocol nor search budget changes anything about it.
        """
        found = {place: cell for place, cell in self.cells.items() if place[1] == "dense"}
        alike = {place: cell for place, cell in found.items() if place[0][:2] == section[:2]}
        own = (cell for place, cell in alike.items() if place[0] == section)
        return next(own, next(iter(alike.values()), None))

    def curve(self, section: Section, method: str, seed: int) -> list[MeasuredCell]:
        """Sparse cells of a method and a seed."""
        wanted = (section, method, seed)
        return [cell for (where, name, _, of), cell in self.cells.items() if (where, name, of) == wanted]

    def comparison(self, section: Section) -> Comparison:
        """Paired comparisons of the cells of a suite."""
        suite = section.model, section.suite
        return self._comparisons.of(
            suite, lambda: (cell for (where, *_), cell in self.cells.items() if where[:2] == suite)
        )


def read_real(*folders: Path) -> RealData:
    """Read every cell below the folders; of a cell that was measured again the newest record counts.

    Raises UserError when there is none, when one is damaged, or when a section's cells, but for their seeds, do
    not belong together.
    """
    return _read(folders, "`make reproduce-table1 PROFILE=real`", varied=())


def read_readings(*folders: Path) -> RealData:
    """Readings of WiSparse's paper, and what they are compared with where any of them was measured.

    Their searches and calibration texts differ, since it is these that are compared. Raises as `read_real`.
    """
    command = "`python repro/run.py experiment=readings`"
    data = _read(folders, command, varied=("search", "search budget", "calibration"))
    return _about(data, lambda name: name.startswith(READING), BESIDE_READINGS)


def read_own(*folders: Path) -> RealData:
    """Read cells of this project's methods, and of published ones where any of them was measured.

    Searches differ in which tokens are sparse while they search. Raises as `read_real`.
    """
    command = "`python repro/run.py experiment=method_real`"
    data = _read(folders, command, varied=("search", "search budget", "calibration"))
    beside = (*BESIDE_OWN, *(name for _, name, *_ in data.cells if name.startswith(OWN)))
    return replace(_about(data, lambda name: name in NEW, beside), unreachable={})


def read_tried(*folders: Path) -> RealData:
    """Read cells of settings under names of their own, on texts of any amount. Raises as `read_real`."""
    command = "`python repro/run.py experiment=method_choice`"
    return _read(folders, command, varied=("search", "search budget", "calibration"))


def read_text_amounts(*folders: Path) -> RealData:
    """Read cells apart by tokens of calibration text: of methods on several amounts, and of the reference.

    Raises as `read_real`, and UserError where no method was measured on two amounts.
    """

    def tokens(record: dict[str, Any]) -> str:
        return str(record["calibration"]["sequences"] * record["calibration"]["length"])

    command = "`python repro/run.py experiment=method_text experiment_name=text_amounts`"
    varied = ("search", "search budget", "calibration")
    data = _read(folders, command, varied, keep=has_own_weights, text=tokens)
    amounts: dict[tuple[Any, ...], set[str]] = {}
    for section, *curve, _ in data.cells:
        amounts.setdefault((section[:-1], *curve), set()).add(section.text)
    several = {curve for curve, found in amounts.items() if len(found) > 1 and curve[1] != "dense"}
    if not several:
        raise UserError(f"no method was measured on two amounts of text; run {command} first")
    places, beside = {where for where, *_ in several}, ("dense", data.reference)

    def shown(section: Section, method: str, sparsity: float, _: int) -> bool:
        where = section[:-1]
        return where in places and (method in beside or (where, method, sparsity) in several)

    return replace(data, cells={place: cell for place, cell in data.cells.items() if shown(*place)})


def read_real_frontier(
    *folders: Path, keep: Callable[[dict[str, Any]], bool] = lambda record: True
) -> RealData:
    """Read cells of every method on one suite, under all protocols, and of pruned weights. keep: which of them.

    Methods are compared with those of their own calibration text. Raises as `read_real`, and UserError for
    several suites or search budgets, and for weights in few bits.
    """
    command = "`python repro/run.py experiment=method_real`"
    varied = ("search", "search budget", "calibration", "quantisation")
    data = _read(folders, command, varied, keep=keep, name=pruned_or_method, text=text_of)
    if len({(section.suite, section.budget) for section in data.sections}) > 1:
        raise UserError(
            "a frontier is of one suite and search budget; choose with --where suite=NAME search=NAME"
        )
    return data


def read_aimed(*folders: Path) -> RealData:
    """Read cells of every method on every suite and calibration text, with the model's own weights.

    Raises as `read_real`.
    """
    command, varied = "`python repro/run.py experiment=method_text`", ("search", "search budget", "calibration")
    return _read(folders, command, varied, keep=has_own_weights, text=text_of)


def read_given_loss(*folders: Path) -> RealData:
    """Read cells with a perplexity: of methods, pruned weights, and attention over chosen groups, each alone.

    The embedded suite without its tasks is a suite of its own, `heldout`, and so it is with few items of each;
    methods are apart from those of another calibration text. Raises as `read_real`.
    """

    def alone(record: dict[str, Any]) -> bool:
        pruned = is_pruned(record)
        others = record["method"]["name"] != "dense"
        beside = record.get("heads") and (others or pruned)
        return record["perplexity"] is not None and (has_own_weights(record) or pruned) and not beside

    def name(record: dict[str, Any]) -> Key:
        if not record.get("heads"):
            return pruned_or_method(record)
        return record["model"]["name"], heads_of(record)["name"], round(key_values_left_out(record), 6)

    def suite(record: dict[str, Any]) -> str:
        chosen, config = suite_choice(record["suite"]["name"]), record["suite"]["config"]
        if chosen != "embedded":
            return chosen
        if config.get("tasks") == []:
            return "heldout"
        return f"{chosen}, limit {config['limit']}" if config.get("limit") else chosen

    # Files beside the weights were stored anew meanwhile; the tokens that they make are compared.
    varied = ("search", "search budget", "quantisation", "heads", "files beside the weights")
    command = "`python repro/run.py experiment=given_loss`"
    return _read(folders, command, varied, keep=alone, name=name, text=text_of, suite=suite)


def text_of(record: dict[str, Any]) -> str:
    """Name of the calibration text that a cell's plan was made on."""
    return str(record["calibration"]["name"])


def read_generation(*folders: Path) -> RealData:
    """Read cells of suites on generated text, apart by calibration text. Raises as `read_real`."""

    def generated(record: dict[str, Any]) -> bool:
        return record["suite"]["name"] == "generation"

    varied = ("search", "search budget", "calibration")
    command = "`python repro/run.py experiment=generation_real`"
    return _read(folders, command, varied, keep=generated, text=text_of)


def _about(data: RealData, asked: Callable[[str], bool], beside: Collection[str]) -> RealData:
    """Cells of the methods asked for, and of those beside them where any of these was measured."""
    sections = {section for section, method, *_ in data.cells if asked(method)}
    suites = {section[:2] for section in sections}

    def shown(section: Section, method: str) -> bool:
        if method == "dense":
            return section[:2] in suites
        return section in sections and (asked(method) or method in beside)

    cells = {place: cell for place, cell in data.cells.items() if shown(*place[:2])}
    methods = {method for _, method, *_ in cells}
    unreachable = {key: most for key, most in data.unreachable.items() if key[1] in methods}
    return replace(data, cells=cells, unreachable=unreachable)


def _read(
    folders: Iterable[Path],
    command: str,
    varied: Collection[str],
    keep: Callable[[dict[str, Any]], bool] = lambda record: True,
    name: Callable[[dict[str, Any]], Key] = place_of,
    text: Callable[[dict[str, Any]], str] = lambda record: "",
    suite: Callable[[dict[str, Any]], str] = lambda record: suite_choice(record["suite"]["name"]),
) -> RealData:
    def place(record: dict[str, Any]) -> Place:
        model, method, sparsity = name(record)
        budget = record["config"]["search"]["name"]
        section = Section(model, suite(record), record["protocol"]["name"], budget, text(record))
        return section, method, sparsity, record["seed"]

    found = stored_cells(folders, place, keep=keep, command=command)
    cells = dict(sorted(found.items(), key=lambda pair: _order(pair[0])))
    data = RealData(cells, unreachable_sparsities(folders, cells.values()))
    named = ((cell.folder, cell.record) for cell in map(without_seed, cells.values()))
    check_names(named, varied)
    for section in data.sections:
        check_comparable(map(without_seed, data.cells_of(section).values()), varied)
    for asked in _distinct(section[:2] for section, *_ in cells):
        check_same_items(without_seed(cell) for place, cell in cells.items() if place[0][:2] == asked)
    return data


def _order(place: Place) -> tuple[Any, ...]:
    (model, suite, protocol, budget, text), method, sparsity, seed = place
    # The default protocol, and the smaller budget, whose grid is the larger, stand first.
    return model, suite, text, protocol != "half", protocol, budget, sparsity, *method_rank(method), seed


def _distinct(values: Iterable[Value]) -> list[Value]:
    return list(dict.fromkeys(values))
