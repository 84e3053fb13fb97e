"""One process at a time: cells and plans that several jobs want are made by the first, found by the others."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..kernels.shared_files import file_mode, make_folder
from ..method.errors import UserError

log = logging.getLogger(__name__)

LOCKS = ".locks"
PAUSE = 1.0
"""Seconds between two looks at a lock that another process holds."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Inside, no other process that asks for it works on `folder`; waits for one that does.

    The system releases the lock of a process that ends, however it ends: a killed job leaves nothing to clear
    up. Between machines the file system they share must support locks (NFS, GPFS, Lustre mounted with `flock`).
    Raises UserError where there is no right to write.
    """
    path = folder.parent / LOCKS / f"{folder.name}.lock"
    try:
        make_folder(path.parent)
        lock = FileLock(path, mode=file_mode(path.parent))
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process, which works on %s", folder)
        lock.acquire(poll_interval=PAUSE)
    except PermissionError as error:
        raise UserError(
            f"{error.filename or path} cannot be written, it belongs to another user; ask for the right to "
            f"write in {folder.parent}, or name another folder (output_dir, cache_dir)"
        ) from error
    try:
        yield
    finally:
        lock.release()
