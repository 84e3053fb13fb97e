"""One process at a time: cells and plans that several jobs want are made by the first, found by the others."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..kernels.shared_files import NO_LOCKS, release, taken, waited_for
from ..method.errors import UserError

log = logging.getLogger(__name__)

LOCKS, ENDING = ".locks", ".lock"


@contextmanager
def held(folder: Path, named_by: str = "output_dir, cache_dir") -> Iterator[None]:
    """Inside, no other process that asks for it works on `folder`; waits for one that does.

    The system releases the lock of a process that ends, however it ends, and the next to end here removes its
    file. Between machines the file system they share must support locks (NFS, GPFS, Lustre mounted with
    `flock`). named_by: what names the folder, for messages. Raises UserError where it does not, or
    where there is no right to write.
    """
    path = folder.parent / LOCKS / f"{folder.name}{ENDING}"
    try:
        lock = waited_for(
            path, waiting=lambda: log.info("waiting for another process, which works on %s", folder)
        )
    except PermissionError as error:
        raise UserError(
            f"{error.filename or path} cannot be written, it belongs to another user; ask for the right to "
            f"write in {folder.parent}, or name another folder ({named_by})"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise UserError(
            f"{path.parent} lies on a file system without locks; name another folder ({named_by}), "
            "or have it mounted with them"
        ) from error
    try:
        yield
    finally:
        release(path, lock)
        for other in path.parent.glob(f"*{ENDING}"):
            with suppress(OSError):
                if (left := taken(other)) is not None:  # of a process that was killed
                    release(other, left)
