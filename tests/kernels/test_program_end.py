"""How programs end: with their output written, or in one line."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest
from wisparse.kernels.errors import KernelError
from wisparse.kernels.program_end import ends_in_one_line

from ..conftest import ROOT

DECORATORS = {"ends_in_one_line", "mistakes_in_one_line"}
OTHERWISE = {
    "repro/run.py": "puts the end of each cell in a line, and says what an interrupted sweep keeps",
    "repro/evaluation/code_box.py": "answers a process of this project, inside a box",
    "repro/speed/llama_cpp_clock.py": "is run by another Python, without this project",
}
"""Programs that end in a way of their own, and why."""


def is_decorated(function: ast.FunctionDef) -> bool:
    calls = [one.func for one in function.decorator_list if isinstance(one, ast.Call)]
    return any(isinstance(call, ast.Name) and call.id in DECORATORS for call in calls)


def test_every_program_ends_alike():
    mains = {
        path.relative_to(ROOT).as_posix(): is_decorated(node)
        for folder in ("kernels", "method", "baselines", "repro", "library")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name == "main"
    }
    assert {path for path, decorated in mains.items() if not decorated} == set(OTHERWISE)
    assert len(mains) > 30


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KernelError("a mistake\nof two lines"), 2, "error: a mistake of two lines\n"),
        (PermissionError(13, "Permission denied", "/x"), 2, "error: /x: Permission denied; ask for the right"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_a_user_can_put_right_is_one_line(capsys, error, code, line):
    @ends_in_one_line()
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code
    shown = capsys.readouterr().err
    assert shown.startswith(line)
    assert shown.count("\n") == line.startswith("error")


def test_a_fault_of_the_program_is_shown_whole():
    with pytest.raises(ZeroDivisionError), ends_in_one_line():
        1 / 0  # noqa: B018


PROGRAM = """
import argparse, sys
from wisparse.kernels.program_end import ends_in_one_line
@ends_in_one_line()
def main():
    argparse.ArgumentParser(description="a program").parse_args()
    print("line\\n" * int(sys.stdin.read()))
main()
"""


def started(arguments: list[str], output: IO[str] | int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "lines"), [(["--help"], ""), ([], "1"), ([], "100000")])
def test_an_output_without_room_is_one_line(arguments, lines):
    with Path("/dev/full").open("w") as full:
        done = started(arguments, full)
        assert done.communicate(lines)[1] == (
            "error: No space left on device where the output goes; choose a place that has room\n"
        )
    assert done.returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("lines", ["1", "100000"])
def test_an_output_without_a_reader_ends_a_program_without_a_word(lines):
    done = started([], subprocess.PIPE)
    done.stdout.close()
    done.stdin.write(lines)
    done.stdin.close()
    assert (done.wait(), done.stderr.read()) == (141, "")
