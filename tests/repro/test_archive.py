"""Archives of records: the same bytes from the same files, read like the folder that they were made of."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from wisparse.method.errors import UserError
from wisparse.repro import archive
from wisparse.repro.archive import keep, pack, read_from, stored_files, unpacked
from wisparse.repro.configuration import REPOSITORY
from wisparse.repro.records import ITEMS, RECORD


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(archive, "CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    for cell in ("teal-0.5", "dense-0", "dense-0/inside"):
        (tmp_path / "table1" / cell).mkdir(parents=True)
        for name in (RECORD, ITEMS):
            (tmp_path / "table1" / cell / name).write_text(f'{{"cell": "{cell}", "ä": 1}}\n', encoding="utf-8")
    return tmp_path / "table1"


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.json")}


def test_an_archive_holds_what_the_folder_held(folder, tmp_path):
    pack(folder, tmp_path / "kept.tar.xz")
    assert contents(unpacked(tmp_path / "kept.tar.xz")) == contents(folder)
    assert unpacked(tmp_path / "kept") == unpacked(tmp_path / "kept.tar.xz")  # by the name without its ending
    assert unpacked(folder) == folder
    assert unpacked(tmp_path / "absent") == tmp_path / "absent"


def test_the_same_files_make_the_same_bytes_whoever_and_whenever(folder, tmp_path):
    pack(folder, tmp_path / "a.tar.xz")
    for path in folder.rglob("*.json"):
        os.utime(path, (1, 1))
        path.chmod(0o600)
    pack(folder, tmp_path / "b.tar.xz")
    assert (tmp_path / "a.tar.xz").read_bytes() == (tmp_path / "b.tar.xz").read_bytes()
    pack(unpacked(tmp_path / "a.tar.xz"), tmp_path / "c.tar.xz")
    assert (tmp_path / "a.tar.xz").read_bytes() == (tmp_path / "c.tar.xz").read_bytes()
    (folder / "teal-0.5" / RECORD).write_text("{}")
    pack(folder, tmp_path / "d.tar.xz")
    assert (tmp_path / "a.tar.xz").read_bytes() != (tmp_path / "d.tar.xz").read_bytes()


def test_records_are_found_in_folders_and_archives_alike(folder, tmp_path):
    mixed = tmp_path / "records"
    pack(folder, mixed / "alpha.tar.xz")
    pack(folder, mixed / "deeper" / "beta.tar.xz")  # in a folder of its own: read by whoever asks for that
    (mixed / "plain").mkdir()
    (mixed / "plain" / RECORD).write_text("{}")
    assert len(stored_files(mixed)) == 4
    assert len(stored_files(mixed / "deeper")) == len(stored_files(mixed / "deeper" / "beta")) == 3
    assert stored_files(mixed) == sorted(stored_files(mixed))
    assert all(path.is_file() for path in stored_files(mixed))
    assert stored_files(tmp_path / "absent") == []


def test_another_archive_of_the_same_name_is_unpacked_anew(folder, tmp_path):
    pack(folder, tmp_path / "kept.tar.xz")
    before = unpacked(tmp_path / "kept")
    (folder / "dense-0" / RECORD).write_text("{}")
    pack(folder, tmp_path / "kept.tar.xz")
    after = unpacked(tmp_path / "kept")
    assert before != after
    assert (after / "dense-0" / RECORD).read_text() == "{}"


def test_two_processes_that_unpack_at_once_have_one_folder(folder, tmp_path, monkeypatch):
    """The other one finishes just before this one renames."""
    pack(folder, tmp_path / "kept.tar.xz")
    rename = Path.rename

    def after_another(staging, target):
        monkeypatch.setattr(Path, "rename", rename)
        unpacked(tmp_path / "kept.tar.xz")
        return rename(staging, target)

    monkeypatch.setattr(Path, "rename", after_another)
    assert contents(unpacked(tmp_path / "kept.tar.xz")) == contents(folder)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_damaged_archive_is_one_line_and_leaves_nothing(folder, tmp_path):
    path = tmp_path / "kept.tar.xz"
    pack(folder, path)
    for damaged in (path.read_bytes()[:-40], b"", b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be unpacked"):
            unpacked(path)
        assert not list(archive.CACHE.glob("*"))
        assert not list(archive.CACHE.glob(".*"))


def test_a_pack_that_fails_leaves_the_old_archive(folder, tmp_path, monkeypatch):
    path = tmp_path / "kept.tar.xz"
    pack(folder, path)
    before = path.read_bytes()
    monkeypatch.setattr(archive.tarfile, "TarInfo", lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pack(folder, path)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".kept*"))


def test_records_are_kept_in_one_form_at_a_time(folder, tmp_path):
    before, kept = contents(folder), tmp_path / "records" / "table1"
    kept.parent.mkdir()
    for target in (kept, kept.with_name("table1.tar.xz"), kept):
        keep(folder, target)
        assert list(kept.parent.iterdir()) == [target]
        assert contents(unpacked(kept)) == before
        shutil.copytree(unpacked(kept), folder)


def test_what_was_not_kept_at_the_target_is_never_deleted(folder, tmp_path):
    kept = tmp_path / "records" / "kept"
    kept.mkdir(parents=True)
    keep(folder, kept)  # an empty folder is taken
    before = contents(kept)
    (kept / "thesis.tex").write_text("years of work")
    shutil.copytree(kept, folder, ignore=shutil.ignore_patterns("thesis.tex"))
    for target in (kept, kept.with_name("kept.tar.xz")):
        with pytest.raises(UserError, match=r"thesis\.tex was not kept there"):
            keep(folder, target)
    assert contents(folder) == contents(kept) == before
    assert (kept / "thesis.tex").read_text() == "years of work"
    assert not kept.with_name("kept.tar.xz").exists()
    file, foreign = tmp_path / "a file", tmp_path / "foreign.tar.xz"
    for other in (file, foreign):
        other.write_text("years of work")
        for target in {other, other.with_name(other.name.removesuffix(".tar.xz"))}:
            with pytest.raises(UserError, match="choose another place"):
                keep(folder, target)
        assert other.read_text() == "years of work"
    shutil.copytree(
        folder, tmp_path / "mine", ignore=shutil.ignore_patterns(".kept")
    )  # records, as a run wrote them
    with pytest.raises(UserError, match=r"items\.json was not kept there"):
        keep(folder, tmp_path / "mine.tar.xz")
    assert contents(tmp_path / "mine") == before


def test_records_are_not_kept_where_they_are_read_from(folder, tmp_path):
    archived = tmp_path / "archived.tar.xz"
    pack(folder, archived)
    for target in (folder.parent, folder / "kept", folder / "kept.tar.xz", folder.with_name("table1.tar.xz")):
        with pytest.raises(UserError, match="keep them in another place"):
            read_from(target, [archived, folder] if target != folder.parent else [folder])
    with pytest.raises(UserError, match="keep them in another place"):
        read_from(archived.with_name("archived"), [archived])
    assert read_from(archived, [archived.with_name("archived")])
    assert read_from(folder, [folder])
    assert not read_from(folder.with_name("table10"), [folder, archived])
    for target in (archived, folder):  # what the other source has would be missing without a word
        with pytest.raises(UserError, match="is read beside other records, which it would not get"):
            read_from(target, [folder, archived])


def test_the_checkout_is_small():
    """All that git keeps, as it lies on the disk."""
    listing = ["git", "-C", str(REPOSITORY), "ls-files", "-z"]
    names = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split("\0")
    sizes = [(REPOSITORY / name).lstat().st_size for name in names if name and (REPOSITORY / name).is_file()]
    assert sum(sizes) <= 100e6
