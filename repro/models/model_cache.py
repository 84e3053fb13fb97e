"""Folders that are made once on a machine and found by every later run: downloads and converted checkpoints."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ...kernels.shared_files import make_folder
from ...method.errors import UserError
from ..locks import held

log = logging.getLogger(__name__)

VARIABLE = "WISPARSE_CACHE"
"""Environment variable that names another place for the cache."""


def cache_root() -> Path:
    """Where made folders are kept: $WISPARSE_CACHE, or `wisparse` in the user's cache folder."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "wisparse"


def made_once(name: str, make: Callable[[Path], None], is_whole: Callable[[Path], bool] = Path.is_dir) -> Path:
    """The folder `name` of the cache; where it is missing or not whole, `make` fills it first.

    It appears whole or not at all, and of several processes one makes it. Raises UserError where the cache
    cannot be written.
    """
    folder = cache_root() / name
    if folder.is_dir() and is_whole(folder):
        return folder
    try:
        with held(folder, f"{VARIABLE}=DIR"):
            if not folder.is_dir() or not is_whole(folder):  # another process may have made it meanwhile
                unfinished = folder.with_name(f"{folder.name}.unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
                make_folder(unfinished)
                try:
                    make(unfinished)
                    if folder.is_dir():
                        log.warning("%s is damaged or incomplete, and is made anew", folder)
                        shutil.rmtree(folder)
                    unfinished.rename(folder)
                finally:
                    shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}); {VARIABLE}=DIR takes another place"
        ) from error
    return folder
