"""Folders of records as one compressed file each: hundreds of JSON files take a twentieth of the space so.

An archive is the same bytes whenever it is made of the same files. Whoever reads a folder of records reads
an archive as well, by its name with or without the ending: it is unpacked once, into the cache.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import shutil
import tarfile
from pathlib import Path

from ..kernels.shared_files import beside, make_folder, replacing
from ..method.errors import UserError
from .configuration import REPOSITORY
from .records import RECORD

ENDING = ".tar.xz"
CACHE = REPOSITORY / ".cache" / "records"


def pack(folder: Path, archive: Path) -> None:
    """Write every file below a folder into an archive, whole or not at all; times and owners are left out."""
    with (
        replacing(archive) as unfinished,
        lzma.open(unfinished, "wb", preset=9) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as opened,
    ):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size, member.mode = path.stat().st_size, 0o644
            with path.open("rb") as content:
                opened.addfile(member, content)


def unpacked(path: Path) -> Path:
    """The folder with an archive's files; of anything else the path itself.

    path: a folder, an archive, or an archive's name without its ending. Raises UserError where one is damaged.
    """
    if not path.name.endswith(ENDING):
        archive = path.with_name(path.name + ENDING)
        if path.exists() or not archive.is_file():
            return path
        path = archive
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        folder = CACHE / f"{path.name.removesuffix(ENDING)}-{digest[:16]}"
        if not folder.is_dir():
            _unpack(path, folder)
    except (OSError, EOFError, lzma.LZMAError, tarfile.TarError) as error:
        raise UserError(f"{path} cannot be unpacked ({error})") from error
    return folder


def stored_files(root: Path, name: str = RECORD) -> list[Path]:
    """Every file of that name below a folder and in the archives that lie in it, or in an archive; sorted."""
    folder = unpacked(root)
    inside = (path for archive in folder.glob(f"*{ENDING}") for path in unpacked(archive).rglob(name))
    return sorted([*folder.rglob(name), *inside])


def keep(folder: Path, target: Path) -> None:
    """Move a folder to `target`, as an archive where that is what the name says; either form there goes."""
    name = target.name.removesuffix(ENDING)
    as_folder, as_archive = target.with_name(name), target.with_name(name + ENDING)
    if target == as_archive:
        pack(folder, target)
        shutil.rmtree(folder)
        shutil.rmtree(as_folder, ignore_errors=True)
    else:
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
        as_archive.unlink(missing_ok=True)


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack beside the folder, then rename: of several processes one wins, and none sees half."""
    staging = beside(folder)
    make_folder(staging)
    try:
        # All of it at once: a stream that ends with the last file would not be checked against its sums.
        content = lzma.decompress(archive.read_bytes())
        with tarfile.open(fileobj=io.BytesIO(content)) as opened:
            # Early releases of Python 3.10 and 3.11 know no filters, and take no argument of that name.
            opened.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
            opened.extractall(staging)
        if not folder.is_dir():
            staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
