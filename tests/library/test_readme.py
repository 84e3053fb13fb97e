"""The code of README.md and CONTRIBUTING.md, run as it stands but for a smaller calibration."""

import importlib.util
import re
import sys

import pytest
import torch
import wisparse
from hydra.utils import instantiate
from omegaconf import OmegaConf
from wisparse.method.running.apply import applied

from ..conftest import ROOT, make_calibration, make_protocol

PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")}


def block(page: str, language: str, text: str) -> str:
    """The page's only block of a language with this text in it."""
    found = re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)
    (only,) = [one for one in found if text in one]
    return only


@pytest.mark.slow
def test_the_lines_for_a_users_own_model_run(monkeypatch):
    code = block("README.md", "python", "import wisparse")
    smaller = code.replace("sparsity=0.5", 'sparsity=0.5, search="minimal", sequences=2, length=64')
    smaller = smaller.replace("new_tokens=200", "new_tokens=20")
    assert smaller != code
    monkeypatch.chdir(ROOT)
    found: dict = {}
    exec(smaller, found)
    assert found["tokens"].shape == (1, found["inputs"].input_ids.shape[1] + 20)
    assert 0.3 < found["engine"].report()["realised_sparsity"] < 0.7
    assert torch.equal(found["tokens"][:, : found["inputs"].input_ids.shape[1]], found["inputs"].input_ids)


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The example of a method as its configuration makes it, imported as if it lay in baselines/."""
    page = "CONTRIBUTING.md"
    code, settings = block(page, "python", "(Method)"), block(page, "yaml", "_target_")
    (name,) = re.findall(r"^`conf/method/(\w+)\.yaml`:", PAGES[page], re.MULTILINE)
    assert f"`baselines/{name}.py`:" in PAGES[page]
    path = tmp_path / f"{name}.py"
    path.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"wisparse.baselines.{name}", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return instantiate(OmegaConf.create(settings))


def test_the_example_of_a_method_keeps_its_sparsity(example, tiny_model):
    calibration = make_calibration(tiny_model)
    plan = example.plan(calibration, 0.5)
    assert plan.provenance.method == example.name
    with applied(tiny_model, plan, make_protocol("all")) as session:
        assert tiny_model(input_ids=calibration.input_ids).logits.isfinite().all()
    assert session.report()["realised_sparsity"] == pytest.approx(0.5, abs=0.03)


def test_the_example_of_a_method_decodes_in_the_engine(example, llama):
    ids = make_calibration(llama).input_ids
    plan = wisparse.plan(llama, None, ids, method=example)
    with wisparse.sparse(llama, plan):
        expected = llama.generate(ids[:1, :7], max_new_tokens=8, do_sample=False, eos_token_id=None)
    with wisparse.engine(llama, plan) as engine:
        assert torch.equal(engine.generate(ids[:1, :7], new_tokens=8), expected)
