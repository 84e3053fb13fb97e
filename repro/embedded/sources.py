"""The held-out packages as text: their files, functions and code lines, read without importing them.

Only `ast` line numbers of statements and regular expressions are used, because these are the same on every
supported Python; `tokenize`, columns inside f-strings and `ast.get_docstring` are not.
"""

from __future__ import annotations

import ast
import keyword
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..text.installed import package_folder
from .corpus import HELD_OUT_PACKAGES, package_sources

IDENTIFIER = re.compile(r"(?<![\w.])[A-Za-z_]\w*")
"""A name that is not an attribute: `a` in `a.b`, never `b`."""

PARAMETER = re.compile(r"[(,]\s*\*{0,2}([A-Za-z_]\w*)")
ASSIGNED = re.compile(r"\s*(?:for\s+)?((?:\w+\s*,\s*)*\w+)\s*(?:=(?!=)|in\b)")
"""A line that gives values to names: `a, b = …` or `for a, b in …`."""

LONGEST_MODULE = 40_000
"""Characters; the few longer files take as long to parse as all others together."""

LEFT_OUT_FOLDERS = {"tests", "_antlr", "benchmarks", "testing"}
"""Repetitive assertions and generated tables: they measure memory of a pattern, not reading of code."""


@dataclass(frozen=True)
class Function:
    """One function of a held-out file, its lines dedented to column 0.

    `signature` are the lines of the `def`, `summary` is the docstring's first line (or empty), `code` are the
    lines after the docstring, without blank lines and whole-line comments.
    """

    name: str
    signature: tuple[str, ...]
    summary: str
    code: tuple[str, ...]


@dataclass(frozen=True)
class Module:
    """One held-out file: its path below site-packages (posix), its text and its functions in file order."""

    path: str
    text: str
    functions: tuple[Function, ...]


@lru_cache(maxsize=1)
def held_out_modules() -> tuple[Module, ...]:
    """Every usable file of the held-out packages, sorted by path; read once a process."""
    modules = [
        Module(name, text, tuple(_functions(text)))
        for name, text in _held_out_files()
        if len(text) <= LONGEST_MODULE and "\t" not in text
    ]
    return tuple(sorted(modules, key=lambda module: module.path))


def long_texts() -> list[str]:
    """Files of the held-out packages that are too long for evaluation: no item is made of them; by path."""
    return [text for _, text in sorted(_held_out_files()) if len(text) > LONGEST_MODULE]


def _held_out_files() -> Iterator[tuple[str, str]]:
    for package in sorted(HELD_OUT_PACKAGES):
        folder = package_folder(package)
        for path, text in package_sources(folder):
            inside = path.relative_to(folder)
            if LEFT_OUT_FOLDERS.isdisjoint(inside.parts):
                yield (Path(package) / inside).as_posix(), text


def _functions(text: str) -> Iterator[Function]:
    """Functions and methods (not nested ones) whose body starts below the signature."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old sources are reported differently by version
        tree = ast.parse(text)
    lines = text.split("\n")
    holders: list[ast.Module | ast.ClassDef] = [tree]
    while holders:
        for node in holders.pop().body:
            if isinstance(node, ast.ClassDef):
                holders.append(node)
            elif isinstance(node, ast.FunctionDef) and node.body[0].lineno > node.lineno:
                yield _function(node, lines)


def _function(node: ast.FunctionDef, lines: list[str]) -> Function:
    first = node.body[0]
    documented = (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
    code_start = (first.end_lineno or first.lineno) if documented else first.lineno - 1
    margin = " " * node.col_offset
    return Function(
        name=node.name,
        signature=_code_lines(lines[node.lineno - 1 : first.lineno - 1], margin),
        summary=_summary(lines[first.lineno - 1 : code_start]) if documented else "",
        code=_code_lines(lines[code_start : node.end_lineno], margin),
    )


def _code_lines(lines: list[str], margin: str) -> tuple[str, ...]:
    kept = (line.removeprefix(margin).rstrip() for line in lines)
    return tuple(line for line in kept if line and not line.lstrip().startswith("#"))


def _summary(docstring_lines: list[str]) -> str:
    """First line with words of a docstring, without quotes and string prefix."""
    text = re.sub(r"^\s*[rRuUbB]*(\"\"\"|'''|\"|')", "", "\n".join(docstring_lines))
    first = next((line.strip() for line in text.split("\n") if line.strip()), "")
    return first.replace('"""', "").replace("'''", "").strip()


def variables(function: Function) -> set[str]:
    """Parameters and assigned names of a function, without `self` and `cls`."""
    names = set(PARAMETER.findall("".join(function.signature)))
    for line in function.code:
        assigned = ASSIGNED.match(line)
        if assigned:
            names.update(re.findall(r"[A-Za-z_]\w*", assigned.group(1)))
    return names - {"self", "cls", "_"}


def identifiers(line: str) -> list[re.Match[str]]:
    """Names in a line that are neither keywords nor attributes, in order."""
    return [match for match in IDENTIFIER.finditer(line) if not keyword.iskeyword(match.group())]


def indentation(line: str) -> int:
    """Number of leading spaces."""
    return len(line) - len(line.lstrip(" "))


def is_plain(line: str, shortest: int, longest: int) -> bool:
    """Whether a line is code of a usable length (without indentation), free of strings and comments."""
    stripped = line.strip()
    return shortest <= len(stripped) <= longest and not any(mark in stripped for mark in "\"'#\\")


def preceding(lines: tuple[str, ...], characters: int) -> tuple[str, ...]:
    """The longest tail of whole lines with at most so many characters."""
    total, start = 0, len(lines)
    while start > 0 and total + len(lines[start - 1]) + 1 <= characters:
        start -= 1
        total += len(lines[start]) + 1
    return lines[start:]
