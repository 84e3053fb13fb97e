"""The embedded llama-mini, loaded once, and the entry point started in this process."""

import os
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from wisparse.repro import run

from ..conftest import ROOT, last_of_each

LLAMA_MINI = ROOT / "repro" / "embedded" / "models" / "llama-mini"


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(LLAMA_MINI)


@pytest.fixture(scope="session")
def model():
    return AutoModelForCausalLM.from_pretrained(LLAMA_MINI, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("run")
    return [f"output_dir={root / 'outputs'}", f"cache_dir={root / 'plans'}"]


@pytest.fixture
def start(monkeypatch, capsys, caplog, folders):
    """Start the entry point in this process; returns exit code, stdout's lines and stderr.

    Of a setting that a test gives again, the last value is passed on: twice would be refused.
    """
    environment, threads = dict(os.environ), torch.get_num_threads()
    torch.set_num_threads(1)

    def start(*overrides: str) -> tuple[int, list[str], str]:
        monkeypatch.setattr(sys, "argv", ["repro/run.py", *last_of_each(overrides), *folders])
        capsys.readouterr()
        caplog.clear()
        with pytest.raises(SystemExit) as stopped:
            run.main()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out.splitlines(), captured.err + caplog.text  # pytest takes the log

    yield start
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)
