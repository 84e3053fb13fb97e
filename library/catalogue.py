"""Methods and token policies by the names of their files in `conf/`, built without Hydra."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from . import method as method_package  # the folder alone: a list of methods must not wait for torch
from .method.errors import UserError
from .method.search.budget import SearchBudget

if TYPE_CHECKING:
    from .method.base import Method
    from .method.token_policy import TokenPolicy

CONFIGURATION = Path(method_package.__file__).resolve().parents[1] / "conf"
"""Folder of the configuration, beside the packages in a checkout and in an installed wheel alike."""

ROTATIONS_COUNTED = True
"""Default of `conf/config.yaml`: dense rotations come out of the sparsity asked for."""

REFERENCE = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True)
class MethodDescription:
    """One line of the catalogue: a method's name, what it does and where it was published."""

    name: str
    summary: str
    paper: str | None
    """The paper's arXiv number; None for the project's own methods and variants."""


def methods() -> dict[str, MethodDescription]:
    """Every method that `plan` takes, by name, with one line on it and its paper."""
    return {path.stem: _described(path) for path in sorted((CONFIGURATION / "method").glob("*.yaml"))}


def make_method(name: str, search: str = "quick", seed: int = 0) -> Method:
    """The method of `conf/method/NAME.yaml` with the preset SEARCH of `SearchBudget`.

    Raises UserError for a name that there is no file of.
    """
    values = {
        "search": vars(SearchBudget.named(search)),
        "allocation": _read("allocation", "evolutionary"),
        "seed": seed,
        "rotations_counted": ROTATIONS_COUNTED,
    }
    return _built(_resolved(_read("method", name), values))


def token_policy(policy: str | TokenPolicy) -> TokenPolicy:
    """The policy of `conf/protocol/NAME.yaml`, or the policy given; raises UserError for an unknown name."""
    from .method.token_policy import TokenPolicy

    if isinstance(policy, TokenPolicy):
        return policy
    if not isinstance(policy, str):
        raise UserError(f"{policy!r} is no token policy; give a name of conf/protocol, or a TokenPolicy")
    return _built(_read("protocol", policy))


def _described(path: Path) -> MethodDescription:
    comments = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or line.startswith("#   "):
            break
        comments.append(line.removeprefix("#").strip())
    summary = " ".join(comments)
    paper = re.search(r"arXiv (\d{4}\.\d{4,5})", summary)
    return MethodDescription(path.stem, summary, paper[1] if paper else None)


def _read(group: str, name: str) -> dict[str, Any]:
    """One file of a group on top of the files that its `defaults` name, merged as Hydra does."""
    folder = CONFIGURATION / group
    path = folder / f"{name}.yaml"
    if not re.fullmatch(r"[\w.-]+", name) or not path.is_file():
        choices = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise UserError(f"no {group} is called '{name}'; choose from {choices}")
    own = yaml.safe_load(path.read_text(encoding="utf-8"))
    parents = own.pop("defaults", [])
    merged: dict[str, Any] = {}
    for parent in parents if "_self_" in parents else [*parents, "_self_"]:
        merged = _merged(merged, own if parent == "_self_" else _read(group, parent))
    return merged


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, with the entries of `above` where there are two; mappings entry by entry, lists as a whole."""
    found = dict(below)
    for key, value in above.items():
        known = found.get(key)
        both = isinstance(known, dict) and isinstance(value, dict)
        found[key] = _merged(known, value) if both else value
    return found


def _resolved(value: Any, values: Mapping[str, Any]) -> Any:
    """The value with every `${a.b}` replaced by what stands there in `values`."""
    if isinstance(value, dict):
        return {key: _resolved(entry, values) for key, entry in value.items()}
    if isinstance(value, list):
        return [_resolved(entry, values) for entry in value]
    if not isinstance(value, str) or not (reference := REFERENCE.fullmatch(value)):
        return value
    found: Any = values
    for part in reference[1].split("."):
        found = found[part]
    return _resolved(found, values)


def _built(value: Any) -> Any:
    """Objects in place of every mapping with a `_target_`, the innermost first."""
    if isinstance(value, list):
        return [_built(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    entries = {key: _built(entry) for key, entry in value.items() if key != "_target_"}
    if "_target_" not in value:
        return entries
    module, _, name = value["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), name)(**entries)
