"""Folders that several users share stay open to all of them, and files appear whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from wisparse.kernels.shared_files import file_mode, make_folder, replacing


@pytest.fixture(autouse=True)
def _umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("around", "made", "lock"),
    [
        (0o755, 0o755, 0o644),
        (0o775, 0o775, 0o664),
        (0o2775, 0o2775, 0o664),
        (0o2777, 0o2777, 0o666),
        (0o2755, 0o2755, 0o644),
        (0o1777, 0o755, 0o644),
    ],
)
def test_a_folder_is_as_open_as_the_one_around_it(tmp_path, around, made, lock):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(around)
    make_folder(shared / "run" / ".locks")
    assert [mode(shared / "run"), mode(shared / "run" / ".locks")] == [made, made]
    assert file_mode(shared / "run") == lock
    make_folder(shared / "run")
    assert mode(shared) == around


def test_a_private_umask_stays_private_where_nobody_shares(tmp_path):
    os.umask(0o077)
    make_folder(tmp_path / "mine")
    assert (mode(tmp_path / "mine"), file_mode(tmp_path / "mine")) == (0o700, 0o600)


def test_a_file_or_a_folder_takes_its_place_whole(tmp_path):
    for text in ("first", "second"):
        with replacing(tmp_path / "new" / "file") as unfinished:
            unfinished.write_text(text)
        assert (tmp_path / "new" / "file").read_text() == text
    with replacing(tmp_path / "new" / "folder") as unfinished:
        unfinished.mkdir()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_what_fails_leaves_nothing(tmp_path, make):
    def fail() -> None:
        with replacing(tmp_path / "file") as unfinished:
            make(unfinished)
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fail()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc here")
def test_where_no_folder_can_be_made_is_named():
    with (
        pytest.raises(PermissionError, match=r"no folder can be made there: '/proc/x'"),
        replacing(Path("/proc/x/y.md")),
    ):
        pass
