"""One process at a time: cells and plans that several jobs want are made by the first, found by the others."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..kernels.shared_files import file_mode, make_folder
from ..method.errors import UserError

log = logging.getLogger(__name__)

LOCKS, ENDING = ".locks", ".lock"
PAUSE = 1.0
"""Seconds between two looks at a lock that another process holds."""
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Inside, no other process that asks for it works on `folder`; waits for one that does.

    The system releases the lock of a process that ends, however it ends, and the next to end here removes its
    file. Between machines the file system they share must support locks (NFS, GPFS, Lustre mounted with
    `flock`). Raises UserError where it does not, or where there is no right to write.
    """
    path = folder.parent / LOCKS / f"{folder.name}{ENDING}"
    try:
        lock = taken(path)
        if lock is None:
            log.info("waiting for another process, which works on %s", folder)
        while lock is None:
            time.sleep(PAUSE)
            lock = taken(path)
    except PermissionError as error:
        raise UserError(
            f"{error.filename or path} cannot be written, it belongs to another user; ask for the right to "
            f"write in {folder.parent}, or name another folder (output_dir, cache_dir)"
        ) from error
    try:
        yield
    finally:
        release(path, lock)
        for other in path.parent.glob(f"*{ENDING}"):
            with suppress(OSError):
                if (left := taken(other)) is not None:  # of a process that was killed
                    release(other, left)


def taken(path: Path) -> int | None:
    """Lock a file, which is made where it is missing; None while somebody else holds it.

    Returns a file descriptor: the lock is this process's until `release`, or until the process ends.
    """
    while True:
        make_folder(path.parent)
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # its folder was removed meanwhile
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(PermissionError):
                os.fchmod(lock, file_mode(path.parent))
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock), path.stat()):
                    return lock
        except BlockingIOError:
            os.close(lock)
            return None
        except OSError as error:
            os.close(lock)
            if error.errno in NO_LOCKS:
                raise UserError(
                    f"{path.parent} lies on a file system without locks; name another folder (output_dir, "
                    "cache_dir), or have it mounted with them"
                ) from error
            raise
        os.close(lock)  # whoever held it has removed the file: it locks nothing any more


def release(path: Path, lock: int) -> None:
    """Remove a lock's file and give the lock up, in this order: who gets it next sees that the file is gone."""
    with suppress(OSError):  # in a folder where each may remove but his own
        path.unlink()
    os.close(lock)
