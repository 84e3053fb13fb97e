"""Records on disk, written whole or not at all, and what a record says of its surroundings."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

from ..kernels.shared_files import replacing
from .configuration import INSTALLED, PACKAGES, digest, portable
from .record import OBJECTS, SCHEMA, SECTIONS, Record, RecordError
from .record_sections import GitState, Surroundings
from .scores import unsupported
from .typed_json import misfit

RECORD, ITEMS, UNREACHABLE = "record.json", "items.json", "unreachable.json"
EVALUATED = "evaluated.json"
"""The record of a cell whose accuracy is measured and whose speed is not yet."""
LOGGED = "logged.json"
"""Where a finished record was logged, and which."""
SEAL = "content_sha256"
"""Key of a file's hash of all its other content. Files of before have none, and are read as they are."""


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The content with its hash as the last entry, by which an edited number is noticed."""
    others = _unsealed(content)
    return others | {SEAL: digest(others)}


def _unsealed(content: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != SEAL}


def write_json(path: Path, content: Any, *, compact: bool = False) -> None:
    """Write JSON to a temporary name beside `path`, then rename: a reader sees all of it or nothing."""
    layout: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 1}
    write_text(path, json.dumps(content, allow_nan=False, ensure_ascii=False, **layout) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to a temporary name beside `path`, then rename."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def save_record(folder: Path, record: dict[str, Any], items: dict[str, Any]) -> None:
    """Write items, then the record with its hash: where a record is, the cell is finished."""
    write_json(folder / ITEMS, items, compact=True)
    write_json(folder / RECORD, sealed(record))
    for other in (UNREACHABLE, EVALUATED):
        (folder / other).unlink(missing_ok=True)


def save_evaluated(folder: Path, record: dict[str, Any], items: dict[str, Any]) -> None:
    """Write items and a record whose speed is still to be measured: nothing that comes then undoes them."""
    write_json(folder / ITEMS, items, compact=True)
    write_json(folder / EVALUATED, sealed(record))


def save_begun(folder: Path, record: dict[str, Any]) -> None:
    """Write a record whose speed is measured in part; what `save_evaluated` wrote stays to go on from."""
    write_json(folder / RECORD, sealed(record))


def load_record(folder: Path, name: str = RECORD) -> dict[str, Any]:
    """Read a finished cell's record. Raises RecordError when it or its items are missing or damaged, or differ.

    name: EVALUATED for what `save_evaluated` wrote.
    """
    record, items = read_record(folder, name), _read(folder / ITEMS)
    if digest(items) != record["items_sha256"]:
        raise RecordError(f"{folder / ITEMS} is not what the record was made from")
    if wrong := unsupported(record, items) or _unlike_its_plan(record):
        raise RecordError(f"{folder / name} was edited or is of other items: {wrong}")
    return record


def read_record(folder: Path, name: str = RECORD) -> dict[str, Any]:
    """Read a record without a look at its items, where its numbers do not matter. Raises RecordError."""
    record = _read(folder / name)
    if lacking := sorted(SECTIONS - record.keys()):
        raise RecordError(f"{folder / name} lacks {', '.join(lacking)}")
    if wrong := sorted(name for name in OBJECTS & record.keys() if not isinstance(record[name], dict | None)):
        raise RecordError(f"{folder / name} is damaged: {', '.join(wrong)} is no object")
    if record["schema"] != SCHEMA:
        raise RecordError(f"{folder / name} has schema {record['schema']}, expected {SCHEMA}")
    if wrong := misfit(Record, record):
        raise RecordError(f"{folder / name} is damaged: {wrong}")
    _check_seal(folder / name, record)
    return record


def load_items(folder: Path) -> dict[str, Any]:
    """Per-item outcomes and per-document likelihoods of a finished cell."""
    return _read(folder / ITEMS)


def load_note(path: Path) -> dict[str, Any]:
    """Read the note on a cell that its method cannot reach."""
    note = _read(path)
    if lacking := sorted({"model", "method", "sparsity", "maximum"} - note.keys()):
        raise RecordError(f"{path} lacks {', '.join(lacking)}")
    _check_seal(path, note)
    return note


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise RecordError(f"{path} is not a JSON object")
    return content


def _unlike_its_plan(record: dict[str, Any]) -> str | None:
    """What a record says of its cell, and of its plan otherwise; None where it agrees with itself."""
    made = (record["plan"] or {}).get("provenance") or {}
    stated = {"sparsity": record["sparsity"], "method": (record["method"] or {}).get("name")}
    for name, value in stated.items():
        if name in made and made[name] != value:
            return f"{name} is {value}, and that of its plan {made[name]}"
    return None


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _check_seal(path: Path, content: dict[str, Any]) -> None:
    if SEAL in content and content[SEAL] != digest(_unsealed(content)):
        raise RecordError(f"{path} was edited: it is not what its {SEAL} was made of")


def surroundings() -> Surroundings:
    """Where and when a record is made: versions, commit, command, time."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Surroundings(versions(), git_state(), command_line(), now)


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that results depend on; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("torch", "transformers", "tokenizers", "lm_eval", "triton", "numpy", "wisparse"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_state() -> GitState | None:
    """Commit and whether tracked files differ from it; None outside a git checkout.

    GIT_COMMIT, where it is set, names the commit instead: of sources copied to a machine without their history,
    or onto another history.
    """
    if commit := os.environ.get("GIT_COMMIT"):
        return GitState(commit, dirty=False)
    if INSTALLED:  # site-packages may lie in somebody else's checkout
        return None
    try:
        commit = _git("rev-parse", "HEAD")
        return GitState(commit, dirty=bool(_git("status", "--porcelain", "--untracked-files=no")))
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PACKAGES), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def command_line() -> str:
    """The command that made the record, with paths relative to the repository."""
    program = portable(str(Path(sys.argv[0]).resolve()))
    # An override is KEY=VALUE, whose value may be a path.
    overrides = ["=".join(map(portable, argument.split("=", 1))) for argument in sys.argv[1:]]
    return shlex.join(["python", program, *overrides])
