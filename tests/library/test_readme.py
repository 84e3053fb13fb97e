"""The README's own code, run as it stands but for a smaller calibration."""

import re

import torch

from ..conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, text: str) -> str:
    """The README's only block of a language with this text in it."""
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (only,) = [one for one in found if text in one]
    return only


def test_the_lines_for_a_users_own_model_run(monkeypatch):
    code = block("python", "import wisparse")
    smaller = code.replace("sparsity=0.5", 'sparsity=0.5, search="minimal", sequences=2, length=64')
    smaller = smaller.replace("new_tokens=200", "new_tokens=20")
    assert smaller != code
    monkeypatch.chdir(ROOT)
    found: dict = {}
    exec(smaller, found)
    assert found["tokens"].shape == (1, found["inputs"].input_ids.shape[1] + 20)
    assert 0.3 < found["engine"].report()["realised_sparsity"] < 0.7
    assert torch.equal(found["tokens"][:, : found["inputs"].input_ids.shape[1]], found["inputs"].input_ids)
