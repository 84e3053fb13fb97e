"""Files that processes and users share: whole or not there, and as open to others as their folder is."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WRITABLE = stat.S_IWGRP | stat.S_IWOTH
PAUSE = 1.0
"""Seconds between two looks at a lock that another process holds."""
FORBIDDEN = (errno.EACCES, errno.EPERM)
"""Numbers of errors that say who may not, and not whether reading or writing was tried."""
UNUSABLE = (
    *FORBIDDEN, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOSPC, errno.EDQUOT, errno.EFBIG,
    errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of the error of a stream that has no name, such as standard output, where there is no room for it."""
NO_FILES = ("/proc/", "/sys/")
"""Where nothing can be made: the system calls it missing."""
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""Numbers of the error on a file system without locks, such as some that machines share."""


def make_folder(folder: Path) -> None:
    """Make a folder and what is missing above it, each as open to others as the one that it is made in.

    Otherwise the first user of a shared folder would shut out all others. A folder that only lets its owners
    remove (/tmp) is none that users share.
    """
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for made in reversed(missing):
        try:
            made.mkdir(exist_ok=True)
        except FileNotFoundError as error:  # below /proc and /sys, although the folder around it is there
            raise PermissionError(errno.EACCES, "no folder can be made there", str(made)) from error
        _open_as_its_folder(made)


def file_mode(folder: Path) -> int:
    """Permissions of a file that is as open to others as its folder."""
    mode = folder.stat().st_mode
    return mode & 0o666 & ~(WRITABLE if mode & stat.S_ISVTX else 0)


def beside(path: Path) -> Path:
    """A name in the same folder that nobody else has: a rename is atomic inside one file system only."""
    return path.with_name(f".{path.name}-{uuid.uuid4().hex[:12]}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` for a file or folder, which takes its place when the context ends without an error.

    The folder above is made where it is missing.
    """
    make_folder(path.parent)
    unfinished = beside(path)
    try:
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        if error.filename is None:  # of a write that failed, on a full disk
            error.filename = str(path)
        raise
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)


def unusable_file(error: OSError) -> str | None:
    """What is wrong with a folder, file or output of the user's; None for other errors of the system."""
    missing = error.errno == errno.ENOENT and str(error.filename).startswith(NO_FILES)
    if error.filename is not None and (error.errno in UNUSABLE or missing):
        place = "choose a place that can be written and has room"
        remedy = "ask for the right to use it, or name another" if error.errno in FORBIDDEN else place
        return f"{error.filename}: {error.strerror}; {remedy}"
    if error.filename is None and error.errno in NO_ROOM:
        return f"{error.strerror} where the output goes; choose a place that has room"
    return None


def taken(path: Path) -> int | None:
    """Lock a file, which is made where it is missing; None while somebody else holds it.

    Returns a file descriptor: the lock is this process's until `release`, or until the process ends. Raises
    OSError, with a number of NO_LOCKS on a file system that has no locks.
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
        except OSError:
            os.close(lock)
            raise
        os.close(lock)  # whoever held it has removed the file: it locks nothing any more


def release(path: Path, lock: int) -> None:
    """Remove a lock's file and give the lock up, in this order: who gets it next sees that the file is gone."""
    with suppress(OSError):  # in a folder where each may remove but his own
        path.unlink()
    os.close(lock)


def waited_for(path: Path, pause: float = PAUSE, waiting: Callable[[], None] = lambda: None) -> int:
    """`taken`, as soon as nobody else holds the lock; `waiting` is called once if somebody does."""
    lock = taken(path)
    if lock is None:
        waiting()
    while lock is None:
        time.sleep(pause)
        lock = taken(path)
    return lock


@contextmanager
def locked(path: Path, pause: float = PAUSE) -> Iterator[None]:
    """Context in which no other process holds this lock file."""
    lock = waited_for(path, pause)
    try:
        yield
    finally:
        release(path, lock)


def _open_as_its_folder(made: Path) -> None:
    around = made.parent.stat().st_mode
    if around & stat.S_ISVTX or not around & WRITABLE:
        return
    write = around & WRITABLE
    mode = stat.S_IMODE(made.stat().st_mode)
    wanted = mode | write | write << 1 | write >> 1  # who writes in a folder reads and enters it, too
    if wanted != mode:
        made.chmod(wanted)
