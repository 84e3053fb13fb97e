"""A copy of an embedded model for tests to change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ..conftest import LLAMA_MINI


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of llama-mini that a test may damage; its large files are links until then."""
    folder = tmp_path / "my-llama"
    folder.mkdir()
    for path in LLAMA_MINI.iterdir():
        if path.suffix == ".safetensors":
            (folder / path.name).symlink_to(path)
        elif path.is_file():
            shutil.copyfile(path, folder / path.name)
    return folder
