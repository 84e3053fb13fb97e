"""Folders that are made once on a machine and found by every later run: downloads and converted checkpoints."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ...kernels.shared_files import make_folder
from ...method.errors import UserError
from ..locks import held

VARIABLE = "WISPARSE_CACHE"
"""Environment variable that names another place for the cache."""


def cache_root() -> Path:
    """Where made folders are kept: $WISPARSE_CACHE, or `wisparse` in the user's cache folder."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "wisparse"


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache; where it is missing, `make` fills it first.

    It appears whole or not at all, and of several processes one makes it. Raises UserError where the cache
    cannot be written.
    """
    folder = cache_root() / name
    if folder.is_dir():
        return folder
    try:
        with held(folder):
            if not folder.is_dir():
                unfinished = folder.with_name(f"{folder.name}.unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
                make_folder(unfinished)
                try:
                    make(unfinished)
                    unfinished.rename(folder)
                finally:
                    shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}); {VARIABLE}=DIR takes another place"
        ) from error
    return folder
