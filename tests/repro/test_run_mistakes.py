"""Mistakes that end a run in one clear line, with nothing half written."""

from __future__ import annotations

from pathlib import Path

import pytest
from wisparse.repro.configuration import REPOSITORY

from .test_run import CELL, ON_A_TEXT, SMALL, choices


@pytest.mark.slow
@pytest.mark.parametrize(
    "experiment", ["table1_paper", "table2_paper", "figure2_paper", "figure3_paper", "figure5_paper"]
)
def test_a_paper_profile_without_weights_is_one_line_a_model(start, monkeypatch, tmp_path, experiment):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))  # a cache that holds nothing
    code, out, err = start(f"experiment={experiment}", "method=dense")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, out) == (2, [])
    for line, model in zip(lines, ("Llama-3.1-8B", "Mistral-7B", "Qwen2.5-7B"), strict=True):
        assert model in line
        assert "run `hf download" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sparsity=1.0"], "sparsity=1.0 is not a number in [0, 1)"),
        (["sparsity=-0.1"], "is not a number in [0, 1)"),
        (["sparsity=half"], "is not a number in [0, 1)"),
        (["seed=-1"], "seed=-1 is not a whole number"),
        (["method=magic"], "no method is called 'magic'; choose from cats, chess"),
        (["method=7"], "no method is called '7'; choose from cats, chess"),
        (["suite=true"], f"no suite is called 'true'; choose from {choices('suite')}"),
        (["debug=a\nb"], "'debug=a b' cannot be read"),
        (["model=llama-big"], "no model is called 'llama-big'; choose from gguf, hub, llama-mini"),
        (["suite=mmlu"], f"no suite is called 'mmlu'; choose from {choices('suite')}"),
        (["protocol=none"], "no protocol is called 'none'; choose from all,"),
        (["experiment=table9"], f"no experiment is called 'table9'; choose from {choices('experiment')}"),
        (["method.magic=1"], "there is no setting 'method.magic'"),
        (["magic=1"], "there is no setting 'magic'"),
        (["+method.magic=1"], "there is no setting 'method.magic'"),
        (["sparsity"], "'sparsity' cannot be read; write KEY=VALUE"),
        (["sparsity=[0.5"], "'sparsity=[0.5' cannot be read"),
        (["suite=perplexity"], "suite.text has no value"),
        (["suite=perplexity", "suite.text=/no/such/text"], "/no/such/text"),
        (["calibration=file"], "calibration.path=FILE"),
        (["model=local"], "model.path=DIR"),
        (["model=local", "model.path=/no/such/folder"], "/no/such/folder is not a folder"),
        (["model=hub"], "model.id=ORG/NAME"),
        (["model=llama3.1-8b"], "run `hf download meta-llama/Llama-3.1-8B-Instruct`"),
        (["model=qwen2.5-7b", "model.path=/no/such/folder"], "/no/such/folder is not a folder"),
        (["model=mistral-7b", "model.weights=best"], "choose pretrained or random"),
        (["suite=paper"], "make prefetch PROFILE=paper"),
        (["suite=paper", "data.root=/no/such/folder"], "/no/such/folder is not a folder"),
        (["suite=paper", "data.root="], "data.root= is not a folder"),
        (["suite=wikitext", "data.root="], "data.root= is not a folder"),
        (["suite=perplexity", "suite.text="], "suite.text= names no file"),
        (["suite=wikitext"], "make prefetch PROFILE=paper"),
        (["calibration=c4"], "make prefetch PROFILE=paper"),
        (
            ["calibration=file", f"calibration.path={REPOSITORY / 'repro/run.py'}", *ON_A_TEXT, *SMALL],
            "13 words in a row",
        ),
        (["logger=wandb", "logger.mode=always"], "choose from auto, login, online"),
        (["method=chess", "sparsity=0.9", *ON_A_TEXT, *SMALL], "the maximum is below"),
    ],
)
def test_bad_input_is_one_clear_line(start, overrides, message):
    code, out, err = start("logger=none", *[one for one in overrides if one != "logger=none"])
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert out == []
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err


def test_nothing_half_written_is_left_by_bad_input(start, folders):
    start("method=chess", "sparsity=0.95", *ON_A_TEXT, *SMALL)
    root = Path(folders[0].partition("=")[2])
    assert not list(root.glob("run/llama-mini-chess-0.95-*"))
    assert not [path for path in root.rglob(".*") if path.is_file()]


def test_debug_shows_the_traceback(start):
    code, _, err = start("sparsity=2", "debug=true", "logger=none")
    assert code == 2
    assert "Traceback" in err
    assert "error: sparsity=2 is not a number in [0, 1)" in err


def test_wandb_that_is_not_installed_names_the_way_out(start, monkeypatch):
    monkeypatch.setattr("wisparse.repro.cell.loggers.importlib.util.find_spec", lambda name: None)
    code, _, err = start("logger=wandb")
    assert code == 2
    assert "pip install wandb" in err
    assert "logger=none" in err


def test_an_unexpected_error_is_one_line_and_another_exit_code(start, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr("wisparse.repro.cell.measure.load_model", fail)
    code, out, err = start(*CELL, "seed=7")
    assert (code, out) == (1, [])
    assert "error: RuntimeError: out of memory and more (debug=true shows where)" in err
    assert "Traceback" not in err
