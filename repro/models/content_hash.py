"""Hashes of the files that a checkpoint is made of, read in pieces: they can be larger than the memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path


def content_sha256(files: Iterable[Path]) -> str:
    """sha256 of the files' contents, one behind the other."""
    hasher = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            # hashlib.file_digest would do, but Python 3.10 has no such function.
            while block := file.read(1 << 22):
                hasher.update(block)
    return hasher.hexdigest()


def file_sha256(file: Path) -> str:
    """sha256 of a file's content, computed once for each state that it was in."""
    status = file.stat()
    return _of_state(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _of_state(file: Path, _size: int, _changed: int) -> str:
    return content_sha256((file,))
