"""Check of a cell's whole configuration before anything of it is built: types by class, bounds by name.

What a setting may be is declared once: its type by the field of the class that its group builds, its bounds by
its name (`method/settings.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from ...method.errors import UserError
from ...method.search.budget import SearchBudget
from ...method.settings import check_setting, entries
from ..configuration import CONFIGURATION
from .overrides import FOLDERS, check_experiment, check_folder

TARGET = "_target_"


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
    else:
        check_setting(kind, value, place, name)
        for where, inside, entry in entries(kind, value, place):
            _check(inside, entry, where, name)


def _check_target(settings: Mapping[str, Any], place: str) -> None:
    try:
        kind = get_class(settings[TARGET])
    except (ImportError, ValueError):
        return  # Hydra says what is wrong with it when it builds the object
    if is_dataclass(kind):
        _check_fields(kind, settings, place)
