"""Where the configuration lives, and how its mistakes are put in one line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..method.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIGURATION = REPOSITORY / "conf"


def register_resolvers() -> None:
    """Make `${repository:PATH}` in the configuration mean PATH inside this repository."""
    OmegaConf.register_new_resolver("repository", lambda path: str(REPOSITORY / path), replace=True)


def portable(value: Any) -> Any:
    """The same JSON-able value with paths inside the repository made relative to it.

    Records and hashes must not depend on where a checkout lies.
    """
    if isinstance(value, DictConfig):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        return {key: portable(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [portable(entry) for entry in value]
    if isinstance(value, str) and value.startswith(f"{REPOSITORY}/"):
        return str(Path(value).relative_to(REPOSITORY))
    return value


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sources_digest(*parts: str) -> str:
    """sha256 over the Python and YAML files of these folders and files of the repository."""
    hasher = hashlib.sha256()
    for part in parts:
        root = REPOSITORY / part
        files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.suffix in (".py", ".yaml"))
        for path in files:
            hasher.update(f"{path.relative_to(REPOSITORY)}\0".encode())
            hasher.update(path.read_bytes() + b"\0")
    return hasher.hexdigest()


def user_mistake(error: BaseException | None) -> str | None:
    """One line on what the user should do, or None when the error is not the user's."""
    while error is not None:
        if isinstance(error, UserError):
            return " ".join(str(error).split())
        if isinstance(error, MissingConfigException):
            return _missing_choice(error)
        if isinstance(error, OmegaConfBaseException):
            return f"configuration: {_first_lines(error)}"
        if isinstance(error, HydraException) and not _caused_by_code(error):
            return f"configuration: {_first_lines(error)}"
        error = error.__cause__
    return None


def _caused_by_code(error: HydraException) -> bool:
    # Instantiation wraps whatever a constructor raised; only its cause tells whose mistake it was.
    return error.__cause__ is not None and not isinstance(error.__cause__, TypeError | OmegaConfBaseException)


def _missing_choice(error: MissingConfigException) -> str:
    missing = error.missing_cfg_file
    if not missing or not error.options:
        return f"configuration: {_first_lines(error)}"
    group, _, choice = str(missing).partition("/")
    return f"no {group} is called '{choice}'; choose from {', '.join(sorted(error.options))}"


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    wanted = [
        line for line in lines if line and not line.startswith(("full_key:", "object_type=", "reference_type="))
    ]
    return "; ".join(wanted[:3])
