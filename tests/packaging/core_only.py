"""A Python that has the core dependencies of `wisparse` and nothing else, of all that is installed here.

usage: python -I -S core_only.py FOLDERS CORE PROGRAM

FOLDERS (entries of sys.path) and CORE (names of distributions) are JSON, PROGRAM is a program's text. Without
`site` no .pth file is read: an editable installation of the checkout is not there either.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _with_dependencies(names: Iterable[str]) -> set[str]:
    """These distributions and what they need without extras, by canonical name."""
    from packaging.requirements import Requirement

    found: set[str] = set()
    left = [_canonical(name) for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # torch for a CPU asks for no triton
            continue
        left += [
            _canonical(one.name)
            for one in map(Requirement, needed)
            if one.marker is None or one.marker.evaluate({"extra": ""})
        ]
    return found


class _Finder:
    """The finder of sys.path, to which these packages are missing."""

    def __init__(self, blocked: set[str]) -> None:
        self.blocked = blocked

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        missing = path is None and name in self.blocked
        return None if missing else PathFinder.find_spec(name, path, target)

    def find_distributions(self, *arguments: Any) -> Iterable[importlib.metadata.Distribution]:
        return PathFinder.find_distributions(*arguments)


def main() -> None:
    folders, core, program = json.loads(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
    sys.path[:0] = folders
    allowed = _with_dependencies(core)
    blocked = {
        package
        for package, distributions in importlib.metadata.packages_distributions().items()
        if not allowed & {_canonical(one) for one in distributions}
    }
    finder = _Finder(blocked - {"wisparse"})
    sys.meta_path = [finder if one is PathFinder else one for one in sys.meta_path]
    exec(compile(program, "program", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
