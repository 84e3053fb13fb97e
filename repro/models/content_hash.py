"""Hashes of the files that a checkpoint is made of, read in pieces: they can be larger than the memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

FileState = tuple[int, int, int, int]
"""Size, two times of change and inode of a file."""

COMPANIONS = (
    "config*.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template.*",
    "additional_chat_templates/*",
)
"""Files beside the weights that transformers reads: settings, tokenizers of every kind, chat templates."""


def companions(folder: Path) -> tuple[Path, ...]:
    """Every file of a checkpoint's folder besides its weights that decides what is computed."""
    return tuple(sorted({path for pattern in COMPANIONS for path in folder.glob(pattern) if path.is_file()}))


def companions_sha256(folder: Path) -> str:
    """sha256 over the names and the contents of `companions`."""
    hashed = {str(path.relative_to(folder)): file_sha256(path) for path in companions(folder)}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


def file_sha256(file: Path) -> str:
    """sha256 of a file's content, computed once for each state that it was in."""
    return files_sha256((file,))


def files_sha256(files: Iterable[Path]) -> str:
    """sha256 of the files' contents, one behind the other, computed once for each state that they were in."""
    files = tuple(files)
    return _of_states(files, states(files))


def states(files: Iterable[Path]) -> tuple[FileState, ...]:
    """Sizes, times of change and inodes: where they are as they were, so are the contents."""
    found = [path.stat() for path in files]
    return tuple((one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino) for one in found)


@lru_cache(maxsize=64)
def _of_states(files: tuple[Path, ...], _states: tuple[FileState, ...]) -> str:
    hasher = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            # hashlib.file_digest would do, but Python 3.10 has no such function.
            while block := file.read(1 << 22):
                hasher.update(block)
    return hasher.hexdigest()
