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
from collections.abc import Iterable
from pathlib import Path

from ..kernels.shared_files import beside, make_folder, replacing
from ..method.errors import UserError
from .configuration import REPOSITORY
from .records import ITEMS, RECORD, UNREACHABLE, write_text

ENDING = ".tar.xz"
KEPT = ".kept"
"""File of a folder that `keep` wrote, with the names of all others: what may go when it keeps there again."""
CACHE = REPOSITORY / ".cache" / "records"
PACKING = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]
"""Settings of the compression: for text, whose bytes follow from those before and stand at no alignment."""


def pack(folder: Path, archive: Path) -> None:
    """Write every file below a folder into an archive, whole or not at all; times and owners are left out."""
    with (
        replacing(archive) as unfinished,
        lzma.open(unfinished, "wb", filters=PACKING) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as opened,
    ):
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != KEPT):
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
    """Move a folder to `target`, as an archive where that is what the name says; either form there goes.

    Raises UserError, before anything is changed, where `target` holds what was not kept there.
    """
    as_folder, as_archive = _forms(target)
    _check_kept_here(as_folder, as_archive)
    if target == as_archive:
        pack(folder, target)
        shutil.rmtree(folder)
        shutil.rmtree(as_folder, ignore_errors=True)
    else:
        write_text(folder / KEPT, "\n".join(_files(folder)) + "\n")
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
        as_archive.unlink(missing_ok=True)


def check_keepable(target: Path | None, sources: Iterable[Path]) -> None:
    """Raises UserError where `keep` would, before anything is made of the records; None: nothing is kept."""
    if target is not None and not read_from(target, sources):
        _check_kept_here(*_forms(target))


def read_from(target: Path, sources: Iterable[Path]) -> bool:
    """Whether `target` is itself the source, so that nothing is to be kept.

    Raises UserError where the one contains the other, or lies there in the other form: keeping would delete it;
    and where it is one of several sources, of which the others would not be kept.
    """
    sources = list(sources)
    forms = [form.resolve() for form in _forms(target)]
    for source in sources:
        stored = (source if source.exists() else _forms(source)[1]).resolve()
        if stored == target.resolve():
            if len(sources) > 1:
                raise UserError(
                    f"{target} is read beside other records, which it would not get: keep them all in another "
                    "place, and put that in its place"
                )
            return True
        for form in forms:
            if form == stored or form in stored.parents or stored in form.parents:
                raise UserError(f"records are read from {source}: keep them in another place than {target}")
    return False


def _forms(path: Path) -> tuple[Path, Path]:
    """The names of what is kept at a path: as a folder and as an archive."""
    name = path.name.removesuffix(ENDING)
    return path.with_name(name), path.with_name(name + ENDING)


def _files(folder: Path) -> list[str]:
    """Every file below a folder but the list of what was kept, as that list has them."""
    paths = (path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    return sorted(path.relative_to(folder).as_posix() for path in paths if path.name != KEPT)


def _check_kept_here(as_folder: Path, as_archive: Path) -> None:
    """Raises UserError where a folder or an archive is none that `keep` wrote, or has files besides."""
    if as_folder.is_symlink() or as_folder.exists():
        try:
            found = _files(as_folder) if as_folder.is_dir() and not as_folder.is_symlink() else ["."]
            listed = (as_folder / KEPT).read_text(encoding="utf-8").splitlines() if found else []
        except OSError:
            listed = []
        if others := sorted(set(found) - set(listed)):
            which = f"{as_folder / others[0]} was" if others != ["."] else f"{as_folder} was"
            raise UserError(f"{which} not kept there, and would be lost: choose another place, or move it away")
    if as_archive.is_symlink() or as_archive.exists():
        try:
            with tarfile.open(as_archive) as opened:
                known = all(Path(name).name in (RECORD, ITEMS, UNREACHABLE) for name in opened.getnames())
        except (OSError, EOFError, lzma.LZMAError, tarfile.TarError):
            known = False
        if not known:
            raise UserError(f"{as_archive} is no archive of records: choose another place, or move it away")


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
        try:
            staging.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
