"""Conversions of a test lie in a folder of its own."""

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WISPARSE_CACHE", str(tmp_path / "cache"))
