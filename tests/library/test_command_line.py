"""The console command: its commands, its mistakes in one line, and the two answers side by side."""

import io
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import pytest
from safetensors import SafetensorError
from wisparse import command_line
from wisparse.checkpoint import library_docstrings, load
from wisparse.method.tokens import stop_tokens
from wisparse.planning import load_plan, plan
from wisparse.side_by_side import Answer, Answers, Request, Screen, side_by_side

from ..conftest import ROOT

MODEL = ROOT / "repro" / "embedded" / "models" / "llama-mini"


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["wisparse", *arguments])
    try:
        command_line.main()
    except SystemExit as end:
        return end.code or 0
    return 0


def test_methods_are_listed(monkeypatch, capsys):
    assert run(monkeypatch, "methods") == 0
    listed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("wisparse ") and "2602.14452" in line for line in listed)


def test_the_command_is_a_module_too_and_says_its_version():
    command = [sys.executable, "-m", "wisparse", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert said == f"wisparse {version('wisparse')}\n"


@pytest.mark.slow
def test_a_plan_is_made_saved_and_used_to_generate(monkeypatch, capsys, tmp_path):
    text, saved = tmp_path / "a text.txt", tmp_path / "teal 50.safetensors"
    text.write_text((ROOT / "README.md").read_text(encoding="utf-8") * 3, encoding="utf-8")
    common = ("--model", str(MODEL), "--device", "cpu")
    arguments = ("--method", "chess", "--calibration", str(text), "--output", str(saved))
    assert run(monkeypatch, "plan", *common, *arguments) == 0
    assert load_plan(saved).provenance.method == "chess"
    assert str(text) in capsys.readouterr().err
    assert run(monkeypatch, "generate", *common, "--plan", str(saved), "--new-tokens", "8", "import os") == 0
    shown = capsys.readouterr().out
    assert "tokens a second" in shown
    assert "MB read a token" in shown
    assert "speed-up" in shown
    assert "\x1b" not in shown  # no terminal here


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["plan", "--model", "nowhere", "--output", "a.safetensors"], "--model nowhere is neither a folder"),
        (["plan", "--model", "./no/such", "--output", "a.safetensors"], "is neither a folder nor a name"),
        (["plan", "--model", str(MODEL), "--output", "a.pt"], "--output a.pt does not end in .safetensors"),
        (["plan", "--model", str(MODEL), "--output", "no/a.safetensors"], "there is no folder"),
        (["generate", "--model", str(MODEL), "--method", "tael", "x"], "no method is called 'tael'"),
        (["generate", "--model", str(MODEL), "--sparsity", "nan", "x"], "--sparsity nan is outside"),
        (["generate", "--model", str(MODEL), "--new-tokens", "0", "x"], "--new-tokens 0 is not at least 1"),
        (
            ["generate", "--model", str(MODEL), "--plan", "p", "--method", "wina", "--sparsity", "0.5", "x"],
            "--plan p is made already: leave out --method, --sparsity, or --plan",
        ),
        (["generate", "--model", str(MODEL), "--plan", "no", "x"], "no: not a readable plan"),
        (["generate", "--model", str(MODEL), "--calibration", "no", "x"], "--calibration=no cannot be read"),
        (["generate", "--model", str(MODEL), "--device", "tpu", "x"], "tpu is not supported"),
        (["generate", "--model", str(MODEL), "--dtype", "int3", "x"], "int3 is not supported"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, arguments, line):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 2
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert shown.startswith("error: ")
    assert line in shown
    assert not list(tmp_path.iterdir())


def test_a_plan_that_a_disk_has_no_room_for_is_one_line(monkeypatch, capsys, tmp_path):
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("wisparse.method.stored.tensor_files.save_file", full)
    output = ["--output", str(tmp_path / "plan.safetensors")]
    assert run(monkeypatch, "plan", "--model", str(MODEL), "--method", "dense", *output) == 2
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert shown.startswith(f"error: {tmp_path}: No space left on device; choose a place")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_output_that_has_no_room_is_one_line():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "wisparse.command_line", "methods"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "error: No space left on device where the output goes; choose a place that has room\n"


def test_a_command_of_the_suite_without_its_packages_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "hydra", None)
    monkeypatch.setattr(sys, "argv", ["wisparse", "table"])
    monkeypatch.setitem(
        command_line.SUITE_COMMANDS, "table", ("hydra.core.nothing", "needs a package that is not there")
    )
    with pytest.raises(SystemExit) as end:
        command_line.main()
    assert end.value.code == 2
    assert "needs the package hydra; install it: pip install 'wisparse[suite]'" in capsys.readouterr().err


@pytest.mark.slow
def test_run_is_the_suites_own_program(monkeypatch, capsys, tmp_path):
    with mock.patch.dict(os.environ):
        assert run(monkeypatch, "run", "sparsity=2", f"output_dir={tmp_path}") == 2
        assert "sparsity=2 is not a number in [0, 1)" in capsys.readouterr().err
        assert run(monkeypatch, "run", "method=teal", "method.name=wina", f"output_dir={tmp_path}") == 2
        assert "numbers of method=teal under the name of another method" in capsys.readouterr().err


def test_it_starts_as_a_program_in_a_moment():
    command = [sys.executable, "-X", "importtime", "-m", "wisparse.command_line", "methods"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cats ")
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "wisparse.catalogue" in imported
    assert not {"torch", "transformers", "hydra"} & imported


@pytest.fixture(scope="module")
def loaded():
    model, tokenizer = load(str(MODEL), "cpu", None)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return model, tokenizer, plan(model, tokenizer, text, method="chess", sequences=2, length=64)


@pytest.mark.slow
def test_the_answers_are_those_of_generate(loaded):
    model, tokenizer, made = loaded
    request = Request("import os\n", 12, "decode_only")
    out = io.StringIO()
    Answers(model, tokenizer, made, request).stream(out)
    ids = request.token_ids(tokenizer)
    expected = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)[0, ids.shape[1] :]
    lines = out.getvalue().splitlines()
    title = lines[0].partition(" │ ")
    assert title[0].startswith("dense")
    assert title[2].startswith("chess")
    shown = "".join(line.partition(" │ ")[0] for line in lines[2 : lines.index("")])
    wanted = tokenizer.decode(expected, skip_special_tokens=True)
    assert "".join(shown.split()).startswith("".join(wanted.split())[:30])


def test_a_step_that_waited_for_a_core_leaves_the_rate_as_it_was():
    """One of 0.5 s among steps of 1 ms, as on a machine with other work, is no rate of 8 tokens a second."""
    assert Answer("dense", mock.Mock(), [1, 2, 3, 4, 5], [0.001, 0.5, 0.001, 0.001]).rate == pytest.approx(1000)
    assert Answer("dense", mock.Mock(), [1]).rate is None


@pytest.mark.slow
def test_an_answer_of_one_token_says_in_two_columns_that_no_rate_was_measured(loaded):
    model, tokenizer, made = loaded
    out = io.StringIO()
    Answers(model, tokenizer, made, Request("import os\n", 1, "decode_only")).stream(out)
    (rates,) = [line for line in out.getvalue().splitlines() if line.startswith("tokens a second")]
    assert rates.endswith(" not measured  not measured")


@pytest.mark.slow
def test_both_answers_come_from_a_plan_in_rotated_bases_too(loaded):
    model, tokenizer, _ = loaded
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    made = plan(model, tokenizer, text, method="larosa", sparsity=0.3, sequences=2, length=64)
    out = io.StringIO()
    Answers(model, tokenizer, made, Request("import os\n", 4, "decode_only")).stream(out)
    assert out.getvalue().startswith("dense")
    assert "block weights not read" in out.getvalue()


def test_a_chat_template_makes_the_prompt_a_message(loaded):
    _, tokenizer, _ = loaded
    assert Request("hello", 1).token_ids(tokenizer)[0].tolist() == tokenizer("hello")["input_ids"]
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    try:
        text = tokenizer.decode(Request("hello", 1).token_ids(tokenizer)[0])
        raw = tokenizer.decode(Request("hello", 1, raw=True).token_ids(tokenizer)[0], skip_special_tokens=True)
    finally:
        tokenizer.chat_template = None
    assert "<user>hello" in text
    assert raw == "hello"


def test_every_end_of_text_token_stops(loaded):
    model, tokenizer, _ = loaded
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [3, 5]
    try:
        assert {3, 5, tokenizer.eos_token_id} <= stop_tokens(model, tokenizer)
    finally:
        model.generation_config.eos_token_id = before


def test_columns_share_the_width_and_keep_indentation():
    lines = side_by_side([("a", "def f():\n    return 1"), ("b", "x" * 70)], 83)
    assert lines[0].split(" │ ")[0].strip() == "a"
    assert lines[3].startswith("    return 1")
    assert all(len(line) <= 83 for line in lines)
    assert sum(line.count("x") for line in lines) == 70


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_is_drawn_over_and_a_file_written_once():
    columns = [("a", "one"), ("b", "two")]
    terminal, file = Terminal(), io.StringIO()
    for out in (terminal, file):
        screen = Screen(out)
        screen.show(columns)
        screen.show(columns)
        screen.finish(columns)
    assert terminal.getvalue().count("\x1b[3F\x1b[J") == 2
    assert file.getvalue().count("one") == 1


@pytest.mark.slow
def test_the_default_calibration_is_english_in_a_fixed_order():
    texts = library_docstrings()
    assert sum(map(len, texts)) > 200_000
    assert texts == library_docstrings()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--dtype", "float16"], "not in torch.float16"),
        (["--new-tokens", "5000"], "positions for 2048 tokens"),
        (["--tokens", "most"], "no protocol is called 'most'"),
        (["--method", "dense"], "--method dense drops nothing"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_a_plan_is_made(monkeypatch, capsys, options, line):
    assert run(monkeypatch, "generate", "--model", str(MODEL), "--device", "cpu", *options, "import os") == 2
    shown = capsys.readouterr().err
    assert line in shown
    assert "plan:" not in shown  # what making one begins with


@pytest.mark.parametrize(("writable", "line"), [(True, "is a folder"), (False, "nothing can be written to")])
def test_an_output_that_cannot_be_written_is_refused_first(monkeypatch, capsys, tmp_path, writable, line):
    output = tmp_path / "a.safetensors"
    if writable:
        output.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: writable)  # root may write everywhere
    assert run(monkeypatch, "plan", "--model", "nowhere", "--output", str(output)) == 2
    assert line in capsys.readouterr().err
