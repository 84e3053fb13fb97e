"""Which code a number depends on: the import closure of what computes it, as a hash.

The closure follows every import within the package, those inside functions too; what is imported for type
checkers alone does not count, for it is never executed. A module counts as its syntax tree without docstrings,
so that neither comments nor formatting change the hash, and by its name, not by where it lies. The `__init__`
of a folder on the way to a module is left out: but for the library's, which computes nothing, they hold no
code. What is no Python (task files, C++ and CUDA sources) a part of a cell names itself, in its `files`.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGE = __name__.partition(".")[0]
Locate = Callable[[str], Path | None]


def targets(section: Any) -> set[str]:
    """Modules of the classes that a configuration builds, those nested in others included."""
    if isinstance(section, Mapping):
        own = {section["_target_"].rpartition(".")[0]} if "_target_" in section else set()
        return own.union(*map(targets, section.values()))
    return set().union(*map(targets, section)) if isinstance(section, list | tuple) else set()


@cache
def located(module: str) -> Path | None:
    """File of a module or of a folder's `__init__`; None where there is no module of that name."""
    spec = find_spec(module)
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def sources_digest(modules: Iterable[str], locate: Locate = located) -> str:
    """sha256 over the import closure of these modules. Raises ModuleNotFoundError for one that is not there."""
    hasher = hashlib.sha256()
    for module, source in sorted(import_closure(modules, locate).items()):
        hasher.update(f"{module}\0{source.digest}\0".encode())
    return hasher.hexdigest()


@dataclass(frozen=True)
class Source:
    """Content of a module as far as it is executed, and the modules that it imports."""

    digest: str
    imports: tuple[tuple[str, int, str | None], ...]
    """Module, level (dots before it) and name of each import; the name is a module's or of something in it."""


def import_closure(modules: Iterable[str], locate: Locate = located) -> dict[str, Source]:
    """These modules and all that they import within the package, directly or not, by name."""
    found: dict[str, Source] = {}
    waiting = sorted(modules)
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        path = locate(module)
        if path is None:
            raise ModuleNotFoundError(f"there is no module {module}", name=module)
        status = path.stat()
        found[module] = _read(path, status.st_mtime_ns, status.st_size)
        folder = module if _is_folder(path) else module.rpartition(".")[0]
        waiting += [name for name in _imported(found[module], folder, locate) if name not in found]
    return found


def _is_folder(path: Path | None) -> bool:
    return path is not None and path.name == "__init__.py"


def _imported(source: Source, folder: str, locate: Locate) -> Iterator[str]:
    for module, level, name in source.imports:
        above = folder.split(".")[: folder.count(".") + 2 - level] if level else []
        base = ".".join([*above, *([module] if module else [])])
        if base.partition(".")[0] != PACKAGE:
            continue
        # `from folder import name`: a module in it, or something that its __init__ defines.
        inside = f"{base}.{name}" if name and _is_folder(locate(base)) else None
        yield inside if inside and locate(inside) else base


@cache
def _read(path: Path, _changed: int, _size: int) -> Source:
    """Parse a file; once for each state that it was in."""
    imports: list[tuple[str, int, str | None]] = []
    parts: list[str] = []
    _write(ast.parse(path.read_bytes()), parts, imports)
    return Source(hashlib.sha256("\0".join(parts).encode()).hexdigest(), tuple(dict.fromkeys(imports)))


def _write(value: Any, parts: list[str], imports: list[tuple[str, int, str | None]]) -> None:
    """Append a syntax tree to `parts`, without docstrings and what type checkers alone read.

    `ast.dump` writes other text for the same source under other versions of Python: empty fields, new ones.
    """
    if isinstance(value, list):
        for entry in value:
            if not _is_docstring(entry):
                _write(entry, parts, imports)
    elif not isinstance(value, ast.AST):
        parts.append(repr(value))
    elif isinstance(value, ast.If) and _is_type_checking(value.test):
        _write(value.orelse, parts, imports)
    else:
        if isinstance(value, ast.Import):
            imports += [(alias.name, 0, None) for alias in value.names]
        elif isinstance(value, ast.ImportFrom):
            imports += [(value.module or "", value.level, alias.name) for alias in value.names]
        parts.append(type(value).__name__)
        for field in value._fields:
            content = getattr(value, field, None)
            if content is not None and content != [] and field != "ctx":
                parts.append(field)
                _write(content, parts, imports)
        parts.append("end")


def _is_docstring(node: Any) -> bool:
    """Whether a statement is a string and nothing else: of a module, a class, a function, or behind a field."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _is_type_checking(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in (getattr(test, "id", None), getattr(test, "attr", None))
