"""Run programs that a model wrote, each in a box of its own (`code_box`), and judge them from outside them."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ...method.errors import UserError
from . import code_box

BOX = Path(code_box.__file__)

PROBE = '''def reached(path):
    """What of the machine is within reach, tried harmlessly."""
'''
PROBE_ANSWER = """
    import os, socket
    found = []
    try:
        if os.fork() == 0:
            os._exit(0)
        found.append("processes without bound")
    except OSError:
        pass
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        found.append("sockets of this machine")
    except OSError:
        pass
    return found + [name for name in ("/proc", "/dev/shm", "/etc/passwd", "/home") if os.path.exists(name)]
"""


@dataclass(frozen=True)
class Problem:
    """A prompt that runs by itself, the answer that goes on from it, and what asks the function by its name."""

    prompt: str
    answer: str
    test: str
    """Defines `check(candidate)`, which raises where the function `candidate` is wrong."""
    entry_point: str


@dataclass(frozen=True)
class CodeRunner:
    """Runs Python programs in boxes, `workers` at once: `seconds` and `memory_mb` for each program.

    Guaranteed of a program: it starts no process or thread, as root too. No file, socket or process of the
    machine is within its reach but the interpreter's libraries, to be read; there is no network. Its files
    are 8 MB in memory that end with it, and what it prints goes nowhere. It ends in time. Its verdict is
    another process's, which gets plain data from it.

    Not guaranteed: anything against a fault of the kernel, and that others get the processor meanwhile.
    """

    seconds: int = 10
    memory_mb: int = 1024
    workers: int = 4

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if type(value) is not int or value < 1:
                raise UserError(f"suite.code.{name}={value} is no positive whole number")

    def require_isolation(self) -> None:
        """Raises UserError where a program cannot be shut in; tried once by a harmless one."""
        if self._refusal is not None:
            raise UserError(
                f"suite.execute_code=true cannot shut programs in on this machine ({self._refusal}): run in a "
                "container that allows namespaces, or leave out what executes code: suite.execute_code=false"
            )

    def run_all(self, problems: Sequence[Problem]) -> list[bool]:
        """Whether each answer passes its tests, in order.

        Raises UserError as `require_isolation` does, and RuntimeError where a problem's tests cannot be asked.
        """
        self.require_isolation()
        with ThreadPoolExecutor(self.workers) as pool:
            return [verdict["passed"] for verdict in pool.map(self._verdict, problems)]

    def _verdict(self, problem: Problem) -> dict[str, Any]:
        verdict = self._in_box(problem)
        if "refused" in verdict:
            raise RuntimeError(f"a program could not be run: {verdict['refused']}")
        return verdict

    def _in_box(self, problem: Problem) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            asked = {**asdict(problem), "seconds": self.seconds, "memory_mb": self.memory_mb, "folder": folder}
            ended = subprocess.run(
                [sys.executable, "-I", "-S", str(BOX)],
                input=json.dumps(asked).encode(),
                capture_output=True,  # of the box and the judge: a program has neither
                cwd="/",
                env={"PYTHONDONTWRITEBYTECODE": "1"},
                start_new_session=True,
                check=False,
            )
        if ended.stdout:
            return json.loads(ended.stdout)
        if ended.returncode in (0, -signal.SIGALRM):
            return {"passed": False, "failure": "ended by a limit"}
        return {"refused": ended.stderr.decode(errors="replace").strip().rpartition("\n")[2] or "its box ended"}

    @cached_property
    def _refusal(self) -> str | None:
        """Why programs cannot be shut in; None where they can."""
        if sys.platform != "linux":
            return "it is not Linux"
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"{folder}/socket")
            listening.listen()
            asked = f"    found = candidate({folder + '/socket'!r})\n    assert not found, found\n"
            check = f"def check(candidate):\n{asked}"
            verdict = self._in_box(Problem(PROBE, PROBE_ANSWER, check, "reached"))
        return verdict.get("refused") or (None if verdict["passed"] else verdict["failure"])


def humaneval_problem(row: dict[str, Any], completion: str, *, fenced: bool) -> Problem:
    """A row of HumanEval with a model's completion.

    `fenced`: the completion stands in a Markdown code block and ends with it.
    """
    body = completion.partition("```")[0] if fenced else completion
    return Problem(row["prompt"], f"{body}\n", row["test"], row["entry_point"])
