"""Hashes of the files that a checkpoint is made of, read in pieces: they can be larger than the memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ...method.errors import UserError

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
    "routers.safetensors",
)
"""Files beside the weights that decide on what is computed: settings, tokenizers of every kind, chat templates,
and routers of neurons."""

TOKENIZER = "tokenizer.json"


def companions(folder: Path) -> tuple[Path, ...]:
    """Every file of a checkpoint's folder besides its weights that decides what is computed."""
    return tuple(sorted({path for pattern in COMPANIONS for path in folder.glob(pattern) if path.is_file()}))


@dataclass(frozen=True)
class FoundFiles:
    """Files in the states in which they were found: no other content is ever hashed or taken for theirs."""

    paths: tuple[Path, ...]
    states: tuple[FileState, ...]

    @classmethod
    def find(cls, paths: Iterable[Path]) -> FoundFiles:
        """The files as they are now."""
        paths = tuple(paths)
        return cls(paths, states(paths))

    def sha256(self) -> str:
        """sha256 of the contents, one behind the other, computed once.

        Raises UserError where it was not computed before a file changed.
        """
        return _of_states(self.paths, self.states)

    def names_sha256(self, folder: Path) -> str:
        """sha256 over the names in `folder` and the contents; raises UserError as `sha256` does.

        A tokenizer's is over its values: one that is stored with other white space is the same.
        """
        hashed = {
            str(path.relative_to(folder)): (_of_values if path.name == TOKENIZER else _of_states)(
                (path,), (state,)
            )
            for path, state in zip(self.paths, self.states, strict=True)
        }
        return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()

    def check_unchanged(self) -> None:
        """Raises UserError that names the first file that is no longer as it was found."""
        for path, state in zip(self.paths, self.states, strict=True):
            if not path.is_file() or states((path,)) != (state,):
                raise UserError(f"{path} changed while it was read; run this again when it is whole")

    def check_not_overwritten(self) -> None:
        """Raises UserError that names the first file that was written into; a file in its place does no harm.

        Weights that are loaded as they are stored lie in the file: what is written into it is computed with.
        """
        for path, (size, modified, _, inode) in zip(self.paths, self.states, strict=True):
            if not path.is_file():
                continue
            now = path.stat()
            if now.st_ino == inode and (now.st_size, now.st_mtime_ns) != (size, modified):
                raise UserError(f"{path} was overwritten while its weights were in use; run this again")


def file_sha256(file: Path) -> str:
    """sha256 of a file's content, computed once for each state that it was in."""
    return files_sha256((file,))


def files_sha256(files: Iterable[Path]) -> str:
    """sha256 of the files' contents, one behind the other, computed once for each state that they were in."""
    return FoundFiles.find(files).sha256()


def states(files: Iterable[Path]) -> tuple[FileState, ...]:
    """Sizes, times of change and inodes: where they are as they were, so are the contents."""
    found = [path.stat() for path in files]
    return tuple((one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino) for one in found)


@lru_cache(maxsize=64)
def _of_states(files: tuple[Path, ...], found: tuple[FileState, ...]) -> str:
    hasher = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            # hashlib.file_digest would do, but Python 3.10 has no such function.
            while block := file.read(1 << 22):
                hasher.update(block)
    FoundFiles(files, found).check_unchanged()  # afterwards: a change before it or meanwhile is seen
    return hasher.hexdigest()


@lru_cache(maxsize=16)
def _of_values(files: tuple[Path], found: tuple[FileState]) -> str:
    """Hash of a JSON file as transformers writes it; of one that is no JSON, of its bytes."""
    try:
        values = json.loads(files[0].read_text(encoding="utf-8"))
    except ValueError:
        return _of_states(files, found)
    FoundFiles(files, found).check_unchanged()
    return hashlib.sha256(json.dumps(values, indent=2, ensure_ascii=False).encode()).hexdigest()
