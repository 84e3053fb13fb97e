"""Check of a cell's whole configuration before anything of it is built: types by class, bounds by name.

What a setting may be is declared once: its type by the field of the class that its group builds, its bounds by
its name, which means the same in every group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from ...method.errors import UserError
from ...method.search.budget import SearchBudget
from ..configuration import CONFIGURATION
from .overrides import FOLDERS, check_experiment, check_folder

TARGET = "_target_"


class Bound(NamedTuple):
    """What a number must keep to, and how that is said."""

    text: str
    holds: Callable[[float], bool]


FROM_0 = Bound("from 0 up", lambda value: value >= 0)
FROM_1 = Bound("from 1 up", lambda value: value >= 1)
FROM_2 = Bound("from 2 up", lambda value: value >= 2)
ABOVE_0 = Bound("above 0", lambda value: value > 0)
SHARE = Bound("from 0 to 1", lambda value: 0 <= value <= 1)

COUNTS = (
    "basis_sequences", "batch", "batch_size", "batch_tokens", "block_tokens", "bytes",
    "correction_sequences", "divergence_tokens", "epoch_tokens", "epochs", "group", "limit", "longest_answer",
    "memory_mb", "norm_order", "offspring", "own_sequences", "piece", "population", "prompt", "repeats", "rows",
    "search_tokens", "seconds", "sensitivity_sequences", "sequences", "share_population", "tokens",
    "tokens_a_step", "windows", "workers",
)  # fmt: skip
STEPS = (
    "alpha_step", "damping", "evolution_step", "greedy_step", "learning_rate", "realised_tolerance", "step",
    "wina_greedy_step",
)  # fmt: skip
SHARES = (
    "choices", "dense_share", "held_out_share", "largest_overlap", "maximum", "minimum", "mutated_share",
    "mutation", "share",
)  # fmt: skip
BOUNDS = {
    **dict.fromkeys(COUNTS, FROM_1),
    **dict.fromkeys(STEPS, ABOVE_0),
    **dict.fromkeys(SHARES, SHARE),
    **dict.fromkeys(("apart_every", "length", "max_length", "new_tokens"), FROM_2),
    "dropped": Bound("above 0 and below 1", lambda value: 0 < value < 1),
    "density": Bound("above 0 up to 1; 0.5 keeps half of the key-value groups", lambda value: 0 < value <= 1),
    # As the cell's name has it: 0.99999999 would be called 1, and is.
    "sparsity": Bound("in [0, 1); 0.5 leaves half of the block weights unread",
                      lambda value: value >= 0 and float(f"{value:g}") < 1),
    **dict.fromkeys(("seed", "weights_seed", "norm_spread_seed"),
                    Bound("from 0 to 4294967295", lambda value: 0 <= value < 2**32)),
}  # fmt: skip
"""Bounds by the name of a setting; of all other numbers FROM_0."""


@dataclass(frozen=True)
class ModelSettings:
    """Types of `model`: a choice has some of these."""

    name: str | None
    source: str
    path: str | None
    id: str | None
    revision: str | None
    package: str
    version: str
    sha256: str
    bytes: int
    file: str
    file_sha256: str
    mirror: str | None
    notes: Mapping[str, str] | None
    weights: str
    weights_seed: int
    tokenizer: str | None
    device: str
    dtype: str
    offload: str
    norm_spread: float
    norm_spread_seed: int
    architecture: Mapping[str, Any]


@dataclass(frozen=True)
class DataSettings:
    """Types of `data`."""

    root: str | None


@dataclass(frozen=True)
class Settings:
    """Types of everything that a cell's configuration holds; `object` is what a group builds."""

    sparsity: float
    seed: int
    rotations_counted: bool
    largest_overlap: float
    data: DataSettings
    experiment_name: str
    output_dir: str
    cache_dir: str
    reference: bool
    force: bool
    debug: bool
    question: Mapping[str, Any] | None
    model: ModelSettings
    search: SearchBudget
    allocation: object
    reading: Mapping[str, Any]
    method: object
    protocol: object
    quantisation: object
    heads: object
    calibration: object
    suite: object
    latency: object
    logger: object


def check_settings(config: DictConfig) -> None:
    """Raises UserError for a setting of another type, out of its bounds, or that nothing reads."""
    settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    _check_fields(Settings, settings, "")
    for setting in FOLDERS:
        check_folder(setting, settings[setting])
    check_experiment(settings["experiment_name"])


NAMED = ("method", "protocol", "quantisation", "heads")
"""Groups whose choices go by their names in records and tables."""
READ = "wisparse"
"""Method that the choices of `reading` change."""


def check_names(config: Mapping[str, Any], choices: Mapping[str, str | None]) -> None:
    """Raises UserError where what was chosen of a group goes by the name of another choice of it.

    So does a reading of WiSparse's paper with another method, whose numbers it would name as WiSparse's.
    """
    reading, method = choices.get("reading"), choices.get("method")
    if reading not in (None, "none") and method not in (None, READ):
        raise UserError(
            f"reading={reading} is of {READ}'s paper and would put the numbers of method={method} under the "
            f"name {config['method']['name']}; take method={READ}, or reading=none"
        )
    for group in NAMED:
        choice, name = choices.get(group), str(config[group]["name"])
        if (
            choice is None
            or name in _names_of(group, choice)
            or not (CONFIGURATION / group / f"{name}.yaml").is_file()
        ):
            continue
        raise UserError(
            f"{group}.name={name} would put the numbers of {group}={choice} under the name of another {group}; "
            f"take {group}={name}, or a {group}.name that none has"
        )


def _names_of(group: str, choice: str) -> set[str]:
    """The choice, and what it goes by where it only changes settings of another."""
    file = CONFIGURATION / group / f"{choice}.yaml"
    content = OmegaConf.load(file) if file.is_file() else {}
    return {choice} if "name" in content else {choice, *map(str, content.get("defaults", []))}


def _check_fields(kind: type, settings: Mapping[str, Any], place: str) -> None:
    """Check a mapping against the annotations of a dataclass; what it lacks has a default or is not read."""
    kinds = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    inside = f"{place}." if place else ""
    for name in settings.keys() - set(names):
        if not name.startswith("_"):
            raise UserError(
                f"there is no setting '{inside}{name}' in what was chosen; --cfg job lists those there are"
            )
    for name in names:
        if name in settings:
            _check(kinds[name], settings[name], inside + name, name)


def _check(kind: Any, value: Any, place: str, name: str) -> None:
    if isinstance(value, Mapping) and TARGET in value:
        _check_target(value, place)
    elif is_dataclass(kind) and isinstance(value, Mapping):
        _check_fields(kind, value, place)
    elif not (known := list(_alternatives(kind))) or any(_fits(one, value, name) for one in known):
        for where, inside, entry in _entries(kind, value, place):
            _check(inside, entry, where, name)
    else:
        wanted = " or ".join(dict.fromkeys(_described(one, name) for one in known))
        raise UserError(f"{place}={_shown(value)} is not {wanted}")


def _check_target(settings: Mapping[str, Any], place: str) -> None:
    try:
        kind = get_class(settings[TARGET])
    except (ImportError, ValueError):
        return  # Hydra says what is wrong with it when it builds the object
    if is_dataclass(kind):
        _check_fields(kind, settings, place)


def _alternatives(kind: Any) -> Iterator[Any]:
    """Members of a union, or the type itself; none of what says nothing."""
    if get_origin(kind) in (UnionType, Union):
        for one in get_args(kind):
            yield from _alternatives(one)
    elif kind is not Any:
        yield kind


def _entries(kind: Any, value: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Place, type and value of what a list or a mapping holds."""
    containers = [one for one in _alternatives(kind) if get_args(one) and get_origin(one) is not Literal]
    for one in containers:
        if isinstance(value, Mapping):
            yield from ((f"{place}.{key}", get_args(one)[1], entry) for key, entry in value.items())
        elif isinstance(value, list):
            yield from ((f"{place}[{index}]", get_args(one)[0], entry) for index, entry in enumerate(value))


def _fits(kind: Any, value: Any, name: str) -> bool:
    if kind is NoneType:
        return value is None
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind in (int, float):
        return _is_number(value, kind) and BOUNDS.get(name, FROM_0).holds(value)
    if kind in (str, bool):
        # A name stands in one line of a table.
        return isinstance(value, kind) and (name != "name" or str(value).isprintable())
    origin = get_origin(kind) or kind
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return isinstance(value, list)
    # Anything else is built of a mapping that names its class, which was looked at before.
    return isinstance(value, Mapping) and not is_dataclass(kind) and origin in (Mapping, dict)


def _is_number(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        return False
    return math.isfinite(value)


def _described(kind: Any, name: str) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if kind in (int, float):
        return f"a {'whole ' if kind is int else ''}number {BOUNDS.get(name, FROM_0).text}"
    origin = get_origin(kind) or kind
    if isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str:
        return "a list"
    one_line = " of one line" if name == "name" else ""
    named = {NoneType: "null", str: f"text{one_line} (quote it)", bool: "true or false", Mapping: "a mapping"}
    return named.get(origin, f"a choice of its group, which names a {TARGET}")


def _shown(value: Any) -> str:
    words = {True: "true", False: "false", None: "null"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
