"""The documents of the English tasks: prose of the installed packages, by file.

Evaluation and calibration read different packages, so that no file is in both. All of them have one version on
every Python that the lock covers, and carry the same Python sources on every machine; text of
Python itself differs from version to version, and is not used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..text.installed import package_folder
from .prose import docstring_texts, paragraphs

EVALUATED: Mapping[str, str] = {
    "lm_eval": "lm_eval",
    "networkx": "networkx",
    "nltk": "nltk",
    "sympy": "sympy",
}
"""Distribution and the module that it is imported as; evaluation items are made of these."""

CALIBRATED: Mapping[str, str] = {
    "accelerate": "accelerate",
    "datasets": "datasets",
    "fonttools": "fontTools",
    "hypothesis": "hypothesis",
    "jinja2": "jinja2",
    "joblib": "joblib",
    "matplotlib": "matplotlib",
    "mpmath": "mpmath",
    "peft": "peft",
    "wandb": "wandb",
}
"""Calibration text is made of these."""

LEFT_OUT_FOLDERS = {"tests", "test", "testing", "_antlr", "__pycache__", "externals", "_vendor"}
TEXT_FILES = (".md", ".rst")
LONGEST_FILE = 400_000
"""Characters; longer ones are generated."""


@dataclass(frozen=True)
class Document:
    """The prose of one file: its path below site-packages, and passages of paragraphs in a row."""

    path: str
    passages: tuple[tuple[str, ...], ...]

    @property
    def paragraphs(self) -> tuple[str, ...]:
        """All paragraphs in the order of the file."""
        return tuple(paragraph for passage in self.passages for paragraph in passage)


@lru_cache(maxsize=1)
def evaluated_documents() -> tuple[Document, ...]:
    """What evaluation items are made of, by path; read once a process."""
    return tuple(_documents(EVALUATED))


@lru_cache(maxsize=1)
def calibration_documents() -> tuple[Document, ...]:
    """What calibration text is made of, by path; read once a process."""
    return tuple(_documents(CALIBRATED))


def _documents(packages: Mapping[str, str]) -> Iterator[Document]:
    """Documents of the packages; a paragraph that stood in an earlier file is left out."""
    seen: set[str] = set()
    for package, module in sorted(packages.items()):
        folder = package_folder(package, module)
        for inside, path in sorted(_files(folder)):
            passages = tuple(_new_passages(_texts(path), seen))
            if passages:
                yield Document(f"{module}/{inside}", passages)


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Python and text files below a folder, with their posix paths inside it."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in LEFT_OUT_FOLDERS]
        for name in names:
            if name.endswith((".py", *TEXT_FILES)):
                path = Path(parent, name)
                yield path.relative_to(folder).as_posix(), path


def _texts(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    if len(text) > LONGEST_FILE:
        return
    if path.suffix == ".py":
        yield from docstring_texts(text)
    else:
        yield text


def _new_passages(texts: Iterator[str], seen: set[str]) -> Iterator[tuple[str, ...]]:
    """Paragraphs that follow each other in a text, each only where it is seen first."""
    for text in texts:
        passage: list[str] = []
        for paragraph in [*paragraphs(text), None]:
            if paragraph is None or paragraph in seen:
                if passage:
                    yield tuple(passage)
                passage = []
            else:
                seen.add(paragraph)
                passage.append(paragraph)
