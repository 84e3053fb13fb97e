"""Which cells may stand in one table: those of the same settings, measured on the same items."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from ...method.errors import UserError
from ..record_facts import comparable
from .cells import MeasuredCell
from .deciding import (
    APART,
    calibration_of,
    check_names,
    heads_of,
    protocol_of,
    quantisation_of,
    search_of,
    without_machine,
)

Settings = Mapping[str, Callable[[MeasuredCell], Any]]
"""How to find what cells must share, by its name."""


def check_comparable(cells: Iterable[MeasuredCell], varied: Collection[str] = ()) -> None:
    """Raises UserError unless all cells share protocol, suite, limits, calibration, seed and items.

    A model is one checkpoint in one dtype that reads one text; search budgets of one name are the same.

    varied: names of settings that the table compares, in which its cells may differ.
    """
    first, *others = cells
    _check({name: find for name, find in SHARED_SETTINGS.items() if name not in varied}, first, others)
    check_names(((cell.folder, cell.record) for cell in (first, *others)), varied)
    _check_one_configuration_a_method((first, *others))
    _check_one_text_a_model((first, *others))


def check_one_text(cells: Iterable[MeasuredCell]) -> None:
    """Raises UserError unless all cells share the protocol, and those of a model read the same tokens."""
    first, *others = cells
    _check({"protocol": SHARED_SETTINGS["protocol"]}, first, others)
    _check_one_text_a_model((first, *others))


def check_same_items(cells: Iterable[MeasuredCell]) -> None:
    """Raises UserError unless all cells share suite, limits and items: what one dense cell is compared with."""
    first, *others = cells
    _check({name: SHARED_SETTINGS[name] for name in ("suite", "task data", "items")}, first, others)


def check_one_format(cells: Iterable[MeasuredCell]) -> None:
    """Raises UserError unless the weights of all cells were quantised under the same settings."""
    first, *others = cells
    _check({"quantisation": SHARED_SETTINGS["quantisation"]}, first, others)


def check_one_training(cells: Iterable[MeasuredCell]) -> None:
    """Raises UserError unless the routers of all cells' heads were trained alike, whatever share they keep."""
    first, *others = cells
    _check({"training of routers": lambda cell: heads_of(cell.record) | {"density": None}}, first, others)


def _check(settings: Settings, first: MeasuredCell, others: list[MeasuredCell]) -> None:
    for other in others:
        for name, find in settings.items():
            expected, found = find(first), find(other)
            if expected != found:
                raise UserError(
                    f"records of different {name} do not belong in one table: {first.folder.name} has "
                    f"{_short(expected)}, {other.folder.name} has {_short(found)}; {APART}"
                )


def _check_one_configuration_a_method(cells: Iterable[MeasuredCell]) -> None:
    seen: dict[str, MeasuredCell] = {}
    for cell in cells:
        method = cell.record["method"]
        other = seen.setdefault(method["name"], cell)
        if comparable(other.record["method"]["config"]) != comparable(method["config"]):
            raise UserError(
                f"{other.folder.name} and {cell.folder.name} are both '{method['name']}' with different "
                "settings; delete one of them, or give it a method.name of its own"
            )


def _check_one_text_a_model(cells: Iterable[MeasuredCell]) -> None:
    # Documents are other tokens where a special one begins them, or where another tokenizer reads them.
    seen: dict[str, MeasuredCell] = {}
    for cell in cells:
        other = seen.setdefault(cell.record["model"]["name"], cell)
        mine, theirs = ((each.record["n_tokens"], each.record["n_documents"]) for each in (cell, other))
        if mine != theirs:
            raise UserError(
                f"{other.folder.name} read {theirs[0]} tokens of {theirs[1]} documents, {cell.folder.name} "
                f"{mine[0]} of {mine[1]}: not the same text, or how documents begin or the tokenizer has "
                f"changed; {APART}"
            )


SHARED_SETTINGS: Settings = {
    "protocol": lambda cell: protocol_of(cell.record),
    "suite": lambda cell: without_machine(cell.record["config"]["suite"]),
    "task data": lambda cell: _task_settings(cell.record),
    "quantisation": lambda cell: quantisation_of(cell.record),
    "heads": lambda cell: heads_of(cell.record),
    "search": lambda cell: search_settings(cell.record),
    "calibration": lambda cell: calibration_of(cell.record),
    "seed": lambda cell: cell.record["seed"],
    "items": lambda cell: (_counts(cell.items), len(cell.items["documents"])),
}


def search_settings(record: dict[str, Any]) -> str:
    """Search budget and which tokens were sparse while methods searched."""
    search = search_of(record)
    return f"{search['name']}, {search['sparse_tokens']} tokens sparse"


def _task_settings(record: dict[str, Any]) -> dict[str, Any]:
    """How each task was asked, and the hash of its data; chat templates are a matter of the model."""
    return {
        name: {key: value for key, value in task.get("settings", {}).items() if key != "chat_template"}
        for name, task in record["tasks"].items()
    }


def _counts(items: dict[str, Any]) -> dict[str, int]:
    return {task: len(outcomes) for task, outcomes in items["items"].items()}


def _short(value: Any) -> str:
    if isinstance(value, dict):
        value = {key: entry for key, entry in value.items() if not key.startswith("_")}
    text = str(value)
    return text if len(text) <= 160 else f"{text[:160]}…"


def without_seed(cell: MeasuredCell) -> MeasuredCell:
    """The same cell with every `seed` of its settings left out: for tables of several."""
    return replace(cell, record=_seedless(cell.record))


def _seedless(settings: Any) -> Any:
    if isinstance(settings, list):
        return [_seedless(entry) for entry in settings]
    if not isinstance(settings, dict):
        return settings
    return {name: None if name == "seed" else _seedless(value) for name, value in settings.items()}
