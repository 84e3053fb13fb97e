"""Where the configuration lives, and how its mistakes are put in one line."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ..kernels.errors import KernelError
from ..kernels.program_end import ends_in_one_line
from ..method.errors import UserError, mistake

PACKAGES = Path(__file__).resolve().parents[1]
"""Where `repro`, `method` and `conf` lie side by side: a checkout, or `wisparse` in site-packages."""

INSTALLED = not (PACKAGES / "pyproject.toml").is_file()
"""Whether this code runs from an installed wheel, without the checkout."""

REPOSITORY = Path.cwd() if INSTALLED else PACKAGES
"""Where results and outputs go: the checkout; without one, the current folder."""

CONFIGURATION = PACKAGES / "conf"
LAUNCHERS = "install one: pip install 'wisparse[joblib]' for joblib, 'wisparse[slurm]' for submitit_slurm"
UNKNOWN_SETTING = re.compile(r"Could not override '([^']+)'")


def register_resolvers() -> None:
    """Make `${repository:PATH}` in the configuration mean PATH inside this repository.

    Of an installed package, `repro/` lies with its code and everything else is in the current folder.
    """
    OmegaConf.register_new_resolver("repository", _located, replace=True)


def _located(path: str) -> str:
    return str((PACKAGES if path.startswith("repro/") else REPOSITORY) / path)


@contextmanager
def composing() -> Iterator[None]:
    """Context in which Hydra's `compose` reads conf/."""
    register_resolvers()
    with initialize_config_dir(str(CONFIGURATION), version_base="1.3"):
        yield


def described(path: Path) -> str:
    """What the comment at the head of a file of conf/ says, without its commands."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        lines.append(line[2:].strip())
    return " ".join(line for line in lines if not line.startswith(("@package", "python ")))


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
    if isinstance(value, str):
        for folder in (PACKAGES, REPOSITORY):
            if value.startswith(f"{folder}/"):
                return str(Path(value).relative_to(folder))
    return value


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of a value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def files_digests(*parts: Any) -> dict[str, str]:
    """sha256 of every file that these parts of a cell say they read, by folder and name."""
    files = [path for part in parts for path in getattr(part, "files", list)()]
    return {f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def user_mistake(error: BaseException | None) -> str | None:
    """One line on what the user should do, or None when the error is not the user's."""
    while error is not None:
        for kind, explain in EXPLANATIONS.items():
            if isinstance(error, kind) and (line := explain(error)):
                return " ".join(line.split())  # what a user typed may have several
        error = error.__cause__
    return None


def mistakes_in_one_line() -> AbstractContextManager[None]:
    """See `ends_in_one_line`; the mistakes are those of `user_mistake`."""
    return ends_in_one_line(user_mistake)


def _missing_choice(error: MissingConfigException) -> str | None:
    if not error.missing_cfg_file or not error.options:
        return None
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    hint = f" or {LAUNCHERS}" if group == "hydra/launcher" else ""
    return f"no {group} is called '{choice}'; choose from {', '.join(sorted(error.options))}{hint}"


def _unreadable_override(error: OverrideParseException) -> str:
    return f"'{error.override}' cannot be read; write KEY=VALUE and quote values with brackets or spaces"


def _missing_value(error: MissingMandatoryValue) -> str:
    return f"{error.full_key} has no value; give {error.full_key}=VALUE"


def _composition(error: HydraException | OmegaConfBaseException) -> str | None:
    if unknown := UNKNOWN_SETTING.match(str(error)):
        return f"there is no setting '{unknown[1]}' in what was chosen; --cfg job lists those there are"
    # Instantiation wraps whatever a constructor raised; only its cause tells whose mistake it was.
    if isinstance(error, InstantiationException) and not isinstance(error.__cause__, TypeError):
        return None
    lines = [line.strip() for line in str(error).splitlines()]
    return f"configuration: {'; '.join([line for line in lines if line][:2])}"


EXPLANATIONS: dict[type[BaseException], Callable[[Any], str | None]] = {
    UserError: mistake,
    KernelError: mistake,
    MissingConfigException: _missing_choice,
    OverrideParseException: _unreadable_override,
    MissingMandatoryValue: _missing_value,
    OSError: mistake,
    HydraException: _composition,
    OmegaConfBaseException: _composition,
}
"""Texts for the user by kind of exception, the more special first; None: look at the exception's cause."""
