"""Overrides of the command line as they are meant: names and paths are text, whatever is in them.

Hydra reads 1e3 as a number, `~` and `=` as mistakes, and rounds 1.10 to 1.1. Behind a setting that is a name or
a path, what a user types is quoted before Hydra sees it, and a leading `~` is the home folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from ...method.errors import UserError
from ..configuration import CONFIGURATION

FOLDERS = ("output_dir", "cache_dir")
"""Settings that name a folder to write into."""
EXPERIMENT = "experiment_name"
PATHS = {"output_dir", "cache_dir", "path", "mirror", "tokenizer", "root", "data_root", "directory", "text"}
NAMES = {
    "config", "experiment_name", "file", "folder", "hub", "id", "name", "package", "project", "release",
    "revision", "split", "template", "version",
}  # fmt: skip
"""Last parts of the names of settings that are text."""

OVERRIDE = re.compile(r"(?P<key>[+]{0,2}[A-Za-z_][\w.]*)=(?P<value>.*)", re.DOTALL)
OTHER_FORM = re.compile(r"null|\?\?\?|\[.*\]|\{.*\}|(?:choice|glob|sort|shuffle|range|interval|tag|str)\(.*\)")
"""Values that are no plain text: nothing, lists, mappings, sweeps."""

SWEEP = ("-m", "--multirun")
GROUPS = {path.name for path in CONFIGURATION.iterdir() if path.is_dir()}
NO_CHOICE = re.compile(r"[-+]?[\d.].*|true|false|[-+]?inf|nan|\{.*\}|\[.*\]", re.IGNORECASE | re.DOTALL)
"""Values that Hydra reads as numbers, lists or mappings, and fails on where a choice of a group belongs."""


def as_meant(arguments: Iterable[str]) -> list[str]:
    """The same arguments with the values of names and paths quoted, and -m before the overrides.

    Raises UserError where one leaves a folder to write into without a name, or names an experiment that lies
    outside of output_dir: Hydra makes it before a job starts.
    So does a setting that is given twice with different values, of which Hydra would take the last, and a name
    that no record could hold.
    """
    arguments = list(arguments)
    _check_are_text(arguments)
    _check_given_once(arguments)
    # Behind some overrides Hydra takes no more of them after an option.
    sweeps = [argument for argument in arguments if argument in SWEEP]
    return [*sweeps, *(_quoted(argument) for argument in arguments if argument not in SWEEP)]


def _check_are_text(arguments: Iterable[str]) -> None:
    """Raises UserError for bytes that are no UTF-8: a cell would end where its record is written."""
    for name in (*arguments, str(Path.cwd())):
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{ascii(name)[1:-1]} is no UTF-8, and no record could name it; give the file or folder "
                "another name, or this shell a locale with UTF-8"
            ) from None


def _check_given_once(arguments: Iterable[str]) -> None:
    given: dict[str, str] = {}
    for argument in arguments:
        found = OVERRIDE.fullmatch(argument)
        if found is None or found["key"].startswith("hydra."):  # those of a target are there to be replaced
            continue
        key, value = found["key"].lstrip("+"), found["value"]
        if given.setdefault(key, value) != value:
            raise UserError(
                f"{key} is given twice, as {given[key]} and as {value}; give it once, or both as a sweep: "
                f"-m {key}={given[key]},{value}"
            )


def _quoted(argument: str) -> str:
    if argument.startswith("~") and argument[1:] in GROUPS:
        _check_choice(argument[1:], "")
    found = OVERRIDE.fullmatch(argument)
    if found is None or found["key"].startswith("hydra."):
        return argument
    group = found["key"].lstrip("+")
    last = group.rpartition(".")[2]
    value = found["value"]
    if group in GROUPS:
        _check_choice(group, value)
        if NO_CHOICE.fullmatch(value):
            return f"{found['key']}={_text(value, False)}"
    if found["key"] in FOLDERS:
        for part in _split(value) or [""]:
            check_folder(found["key"], part.strip().strip("'\""))
    if found["key"] == EXPERIMENT:
        for part in _split(value) or [""]:
            check_experiment(part.strip().strip("'\""))
    if last not in PATHS | NAMES or OTHER_FORM.fullmatch(value):
        return argument
    parts = _split(value)
    return f"{found['key']}={','.join(_text(part, last in PATHS) for part in parts)}"


def _check_choice(group: str, value: str) -> None:
    """Raises UserError for nothing where a choice of a group belongs: there Hydra asks for a list."""
    if any(part.strip() in ("", "null") for part in _split(value) or [""]):
        without = f"write {group}=none" if (CONFIGURATION / group / "none.yaml").is_file() else "leave it out"
        raise UserError(f"{group}={value} names no {group}; {without}, or give a choice that --help lists")


def check_folder(setting: str, value: str | None) -> None:
    """Raises UserError for an empty name of a folder, which would be the working directory, and for none."""
    if value in (None, "null") or not value.strip():
        raise UserError(f"{setting}={value or ''} names no folder to write into; give {setting}=FOLDER")


def check_experiment(value: str) -> None:
    """Raises UserError for a name of an experiment that is no folder below output_dir."""
    name = PurePosixPath(value)
    if not name.parts or name.is_absolute() or ".." in name.parts:
        raise UserError(
            f"{EXPERIMENT}={name if name.parts else repr('')} is no name of a folder below output_dir"
        )


def _split(value: str) -> list[str]:
    """Values of a sweep: what stands between commas outside of quotes and of `${}`."""
    if not re.search(r"""(?:^|,)\s*['"]|\$\{""", value):
        return value.split(",")
    return re.findall(r"""(?:\$\{[^}]*\}|'(?:\\.|[^'])*'|"(?:\\.|[^"])*"|[^,])+""", value)


def _text(value: str, is_path: bool) -> str:
    """One value as a quoted string of Hydra's grammar."""
    plain = value
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        plain = value[1:-1].replace(f"\\{value[0]}", value[0])
    elif value in ("", "null"):
        return value
    if is_path and plain.startswith("~"):
        plain = str(Path(plain).expanduser())
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", plain)
    escaped = re.sub(r"(\\+)$", lambda found: found[1] * 2, escaped)
    return f"'{escaped}'"
