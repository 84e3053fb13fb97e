"""What decides a cell's numbers: records that differ in it are of two cells, whatever they are called.

Device, versions and commit are no part of it: tables show them. Batch sizes, which change results by rounding
alone, and the place of a mirror follow the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ...method.errors import UserError
from ..record_facts import comparable

Record = dict[str, Any]
Found = tuple[Path, Record]
"""The folder of a cell, which messages name, and its record."""
APART = "delete those not wanted, or keep them apart with experiment_name=NAME"


def without_machine(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a group without those that follow the machine."""
    return {
        name: value
        for name, value in comparable(dict(settings)).items()
        if not name.startswith("batch_") and name != "data_root"
    }


def search_of(record: Record) -> dict[str, Any]:
    """The search budget; of records that do not say which tokens are sparse in searches, all are."""
    return {"sparse_tokens": "all"} | record["config"]["search"]


def search_values(record: Record) -> dict[str, Any]:
    """Values of the search budget, which a name alone does not tell."""
    return {name: value for name, value in without_machine(search_of(record)).items() if name != "name"}


FORMER_PIECE = 8000
"""Characters of a file in `calibration=unseen` before `piece` was a setting; the hashes of the text agree."""


FORMER_COMPANIONS = {
    "ab9b4fa38fed5df1a5e45aa10b81659b472ae9d197fda3674d63416afc595ff9": (
        "870963045dca85f16d1dfc108012b7fadbfe644c0308917938a2806476b66da2"
    ),
    "09d8d7c3335f4b5a32693a03a4a9c741b6984a0b14afc0c3383e7f607f794b5b": (
        "1c321ce5d7c9c970f48d66108386c5841c48384cbf58b4c32cbe8e513880ca44"
    ),
}
"""Hashes over the bytes of an embedded model's tokenizer, and those over its values, of the same files."""


def companions_of(record: Record) -> str | None:
    """The hash of the files beside the weights; None of older records, which do not say."""
    found = record["model"].get("companions")
    return FORMER_COMPANIONS.get(found, found)


def quantisation_of(record: Record) -> dict[str, Any]:
    """Settings of the quantised weights; of records without any, which older ones are, `none`."""
    found = record.get("quantisation")
    return {"name": "none"} if found is None else without_machine(found["config"])


def has_own_weights(record: Record) -> bool:
    """Whether the model computed with its own weights: neither in few bits nor pruned."""
    return bool(quantisation_of(record)["name"] == "none")


def protocol_of(record: Record) -> dict[str, Any]:
    """Settings of the token policy; of records that do not say how many rows share a mask, each has its own."""
    return {"rows_sharing": 1} | without_machine(record["config"]["protocol"])


def calibration_of(record: Record) -> dict[str, Any]:
    """Settings of the calibration text; of records that do not say how much of a file, what was taken then."""
    settings = without_machine(record["config"]["calibration"])
    return {"piece": FORMER_PIECE} | settings if settings.get("name") == "unseen" else settings


def heads_of(record: Record) -> dict[str, Any]:
    """Settings of the heads that attention looks at; of records that do not say, all."""
    found = record.get("heads")
    return {"name": "none"} if found is None else without_machine(found["config"])


DECIDING: Mapping[str, Callable[[Record], Any]] = {
    "model fingerprint": lambda record: record["model"]["fingerprint"],
    "files beside the weights": companions_of,
    "dtype": lambda record: record["model"]["dtype"],
    "quantisation": quantisation_of,
    "heads": heads_of,
    "suite": lambda record: without_machine(record["config"]["suite"]),
    "method settings": lambda record: without_machine(record["method"]["config"]),
    "protocol": protocol_of,
    # The other values of a budget stand in the settings of the methods that search.
    "search tokens": lambda record: search_values(record)["sparse_tokens"],
    "calibration": calibration_of,
    "seed": lambda record: record["seed"],
}
"""How to find it in a record, by its name."""
OF_DENSE = ("model fingerprint", "files beside the weights", "dtype", "quantisation", "heads", "suite")
"""All of it that a dense model's numbers depend on."""
OF_ITS_WEIGHTS = ("calibration", "seed")
"""What they depend on besides, where weights are not the model's own: some are made on the calibration text."""
NAMED: Mapping[str, tuple[Callable[[Record], str], Callable[[Record], Any]]] = {
    "model fingerprint": (lambda record: record["model"]["name"], DECIDING["model fingerprint"]),
    "files beside the weights": (
        lambda record: record["model"]["name"],
        DECIDING["files beside the weights"],
    ),
    "dtype": (lambda record: record["model"]["name"], DECIDING["dtype"]),
    "quantisation": (lambda record: record["model"]["name"], quantisation_of),
    "heads": (lambda record: record["model"]["name"], heads_of),
    "protocol": (lambda record: record["config"]["protocol"]["name"], protocol_of),
    "search budget": (lambda record: record["config"]["search"]["name"], search_values),
}
"""What must be the same throughout a table wherever it goes by the same name."""


def check_one_cell(first: Found, second: Found) -> None:
    """Raises UserError that names what differs, where two records of one place of a table are of two cells."""
    names = tuple(DECIDING)
    if first[1]["method"]["name"] == "dense":
        own = has_own_weights(first[1])
        names = OF_DENSE if own else OF_DENSE + OF_ITS_WEIGHTS
    for name in names:
        _check_equal(name, DECIDING[name], first, second, "both stand for one cell of the table")


def check_names(found: Iterable[Found], varied: Collection[str] = ()) -> None:
    """Raises UserError where two records call different models, protocols or search budgets by one name.

    varied: which of these the table compares under one name.
    """
    seen: dict[tuple[str, str], Found] = {}
    for folder, record in found:
        for kind, (name, find) in NAMED.items():
            if kind in varied or (kind not in OF_DENSE and record["method"]["name"] == "dense"):
                continue
            if find(record) is None:
                continue  # a record of a version before does not say
            other = seen.setdefault((kind, name(record)), (folder, record))
            _check_equal(kind, find, other, (folder, record), f"both are called '{name(record)}'")


def _check_equal(name: str, find: Callable[[Record], Any], first: Found, second: Found, why: str) -> None:
    expected, value = find(first[1]), find(second[1])
    if None in (expected, value):
        return  # a record of a version before does not say
    if expected != value:
        raise UserError(
            f"records of different {name} do not belong in one table: {first[0].name} has "
            f"{_differing(expected, value)}, {second[0].name} has {_differing(value, expected)}, "
            f"and {why}; {APART}"
        )


def _differing(value: Any, other: Any) -> str:
    """The value in short; of settings those that the other has not or has otherwise."""
    if isinstance(value, dict) and isinstance(other, dict):
        value = {key: entry for key, entry in value.items() if key not in other or other[key] != entry}
    text = str(value)
    return text if len(text) <= 160 else f"{text[:160]}…"
