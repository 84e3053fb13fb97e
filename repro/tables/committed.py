"""Committed tables beside what the committed records make: `python -m wisparse.repro.tables.committed`.

`results/made_from.yaml` declares the command of each. With --write they are made again in their place.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from ...method.errors import UserError
from ..configuration import mistakes_in_one_line

DECLARED = "made_from.yaml"
COMPARED = (".md", ".csv")
"""Plots are drawn from the rows of the CSV, and differ in what a version of the plotting library adds."""


def declared(results: Path) -> dict[str, list[str]]:
    """The command of each table by its path below `results` without an ending: a module and its arguments.

    Raises UserError where the declaration cannot be read.
    """
    path = results / DECLARED
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {name: shlex.split(command) for name, command in found.items()}
    except (OSError, yaml.YAMLError, AttributeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as NAME: MODULE ARGUMENTS: {error}") from None


def wanted(commands: Mapping[str, Sequence[str]], patterns: Sequence[str]) -> list[str]:
    """Names that a pattern matches, all without patterns. Raises UserError for a pattern that matches none."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in commands):
            raise UserError(f"no committed table is called '{pattern}'; there are {', '.join(commands)}")
    return [name for name in commands if not patterns or any(fnmatchcase(name, each) for each in patterns)]


def make(command: Sequence[str], output: Path, root: Path) -> None:
    """Run a table's command from `root`. Raises UserError with the last line that it printed where it fails."""
    output.parent.mkdir(parents=True, exist_ok=True)
    module, *arguments = command
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--output", str(output)],
        cwd=root,
        env=os.environ | {"TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(said[-1].removeprefix("error: "))


def differences(committed: Path, made: Path) -> Iterator[str]:
    """A line for each file of a table, .md and .csv, that differs: the first line that does."""
    for path in sorted(parent / name for parent, name in _files(committed) | _files(made)):
        old, new = committed.parent / path, made.parent / path
        if not new.exists() or not old.exists():
            yield f"{path} is {'not made' if old.exists() else 'not committed'}"
            continue
        lines = zip_longest(*(each.read_text(encoding="utf-8").splitlines() for each in (old, new)))
        for number, (before, after) in enumerate(lines, 1):
            if before != after:
                yield f"{path}, line {number}: committed {_shown(before)}, made {_shown(after)}"
                break


def _files(table: Path) -> set[tuple[Path, str]]:
    """Files of a table, TABLE.md, TABLE.csv and those in a folder TABLE: folder below its parent, and name."""
    beside = {Path() / f"{table.name}{ending}" for ending in COMPARED}
    found = {path for path in beside if (table.parent / path).exists()}
    found |= {path.relative_to(table.parent) for path in table.rglob("*") if path.suffix in COMPARED}
    return {(path.parent, path.name) for path in found}


def _shown(line: str | None, length: int = 160) -> str:
    if line is None:
        return "nothing"
    return f"'{line if len(line) <= length else line[:length] + '…'}'"


@mistakes_in_one_line()
def main() -> None:
    """Make committed tables from the committed records, and say which are not the same."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("tables", nargs="*", help="names such as speed or 'real/*'; all without")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder with the tables")
    parser.add_argument("--write", action="store_true", help="make them in their place")
    arguments = parser.parse_args()
    results = arguments.results.resolve()
    commands, wrong = declared(results), []
    for name in wanted(commands, arguments.tables):
        with TemporaryDirectory() as apart:
            output = results / name if arguments.write else Path(apart) / name
            try:
                make(commands[name], output, results.parent)
                found = [] if arguments.write else list(differences(results / name, output))
            except UserError as error:
                found = [f"{name} is not made: {error}"]
        fine = "made again" if arguments.write else "as its records make it"
        print("\n".join(found) or f"{name}: {fine}", flush=True)
        wrong += [name] if found else []
    if wrong:
        raise UserError(f"not as committed: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
