"""The wheel: everything that the code reads is in it, no weights; and it runs without the checkout."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from ..conftest import METHODS, ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CORE = {"numpy", "safetensors", "torch", "tqdm", "transformers", "triton"}
FOLDERS = {"library": "wisparse"} | {
    name: f"wisparse.{name}" for name in ("baselines", "conf", "kernels", "method", "repro")
}
LLAMA_MINI = ROOT / "repro" / "embedded" / "models" / "llama-mini"
SITE = Path(torch.__file__).parents[1]

IMPORT_EVERYTHING = """
import importlib, pathlib, wisparse
root = pathlib.Path(wisparse.__file__).parent
found = 0
for path in sorted(root.rglob("*.py")):
    parts = path.relative_to(root).with_suffix("").parts
    if parts[0] == "repro" or parts[-1] == "__main__":
        continue
    importlib.import_module(".".join(("wisparse", *parts)).removesuffix(".__init__"))
    found += 1
try:
    import hydra
except ModuleNotFoundError:
    print("modules", found)
"""

FIVE_LINES = """
import sys, torch, transformers
import wisparse
assert wisparse.__file__.startswith(FOLDER), wisparse.__file__
model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
texts = [open(torch.nn.functional.__file__, encoding="utf-8").read()[:20_000]]
settings = {"search": "minimal", "sequences": 4, "length": 128}
inputs = tokenizer("def main(arguments):", return_tensors="pt")
plan = wisparse.plan(model, tokenizer, texts, method="teal", sparsity=0.5, **settings)
with wisparse.sparse(model, plan):
    sparse = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None)
with wisparse.engine(model, plan) as engine:
    fast = engine.generate(inputs["input_ids"], new_tokens=8)
    report = engine.report()
assert torch.equal(sparse, fast), (sparse, fast)
print("methods", *wisparse.methods())
print("realised", report["realised_sparsity"])
"""


def python_folders(root: Path) -> set[Path]:
    return {path.parent.relative_to(ROOT) for path in root.rglob("*.py")}


def test_every_folder_of_code_is_a_package_and_every_package_a_folder():
    tools = PROJECT["tool"]["setuptools"]
    expected = {}
    for top, package in FOLDERS.items():
        for folder in python_folders(ROOT / top) | {Path(top)}:
            expected[".".join((package, *folder.parts[1:]))] = folder.as_posix()
    assert tools["package-dir"] == expected
    assert sorted(tools["packages"]) == sorted(expected)


def test_the_core_is_small_and_everything_is_in_dev():
    from packaging.requirements import Requirement

    assert {Requirement(one).name for one in PROJECT["project"]["dependencies"]} == CORE
    extras = PROJECT["project"]["optional-dependencies"]
    own = [Requirement(one) for one in extras["dev"] if Requirement(one).name == "wisparse"]
    assert own[0].extras == set(extras) - {"dev"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: a build leaves folders behind."""
    sources, folder = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns("__pycache__", "*.safetensors")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, sources / name, ignore=left_out)
    # A weight there is, if a small one: that it stays out must show.
    (sources / "repro" / "embedded" / "models" / "llama-mini" / "model.safetensors").write_bytes(b"weights")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, sources)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, f"--wheel-dir={folder}", str(sources)], check=True)
    return next(folder.glob("wisparse-*.whl"))


@pytest.fixture(scope="session")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_with_core(program: str, unpacked: Path, cwd: Path) -> str:
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("core_only.py"))]
    command += [json.dumps([str(unpacked), str(SITE)]), json.dumps(sorted(CORE)), program]
    finished = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.slow
def test_what_the_code_reads_is_in_the_wheel_and_neither_weights_nor_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tracked = [path for top in FOLDERS for path in (ROOT / top).rglob("*") if path.is_file()]
    for path in tracked:
        inside = path.relative_to(ROOT)
        stored = "/".join((*FOLDERS[inside.parts[0]].split("."), *inside.parts[1:]))
        weights = inside.parts[:3] == ("repro", "embedded", "models") and not (
            inside.parts[3] == "llama-mini" and path.name.startswith("tokenizer")
        )
        if "__pycache__" not in inside.parts and path.suffix != ".md" and not weights:
            assert stored in names, stored
        elif weights or "__pycache__" in inside.parts:
            assert stored not in names, stored
    assert not [name for name in names if name.endswith(".safetensors") or "test" in Path(name).parts[0]]


@pytest.mark.slow
def test_library_methods_kernels_and_baselines_need_the_core_alone(unpacked, tmp_path):
    modules = [path for top in FOLDERS if top != "repro" for path in (ROOT / top).rglob("*.py")]
    count = sum(path.stem != "__main__" for path in modules)
    assert run_with_core(IMPORT_EVERYTHING, unpacked, tmp_path) == f"modules {count}\n"


@pytest.mark.slow
def test_the_wheel_plans_applies_and_decodes_without_the_checkout(unpacked, tmp_path):
    program = f"FOLDER, MODEL = {str(unpacked)!r}, {str(LLAMA_MINI)!r}\n{FIVE_LINES}"
    methods, realised = run_with_core(program, unpacked, tmp_path).splitlines()
    assert methods.split()[1:] == METHODS
    assert 0.3 < float(realised.split()[1]) < 0.7
    assert not list(tmp_path.iterdir())
