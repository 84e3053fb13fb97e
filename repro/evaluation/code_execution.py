"""Run programs that a model wrote: each in a process of its own with bounded time and memory and no network."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...method.errors import UserError

NAMESPACES = ("--net", "--ipc", "--pid", "--fork", "--kill-child")
"""No network but an unconfigured loopback, and nothing that a program starts outlives it."""

RUNNER = """
import resource, sys
seconds, memory, token = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
program = sys.stdin.read()
for limit, value in (
    (resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, 1 << 20),
    (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, 0), (resource.RLIMIT_NOFILE, 32),
):
    resource.setrlimit(limit, (value, value))
report, sys.argv, sys.stdout, sys.stderr = sys.stdout, [""], open("/dev/null", "w"), open("/dev/null", "w")
exec(compile(program, "program", "exec"), {"__name__": "program"})
report.write(token)
"""
"""Program of the child: it bounds itself, then runs the answer; only one that comes to its end is reported."""


@dataclass(frozen=True)
class CodeRunner:
    """Runs Python programs in isolation: `seconds` and `memory_mb` for each, `workers` of them at once.

    A program can read what this account can read and write small files where it can write: who does not want
    that runs the suite in a container.
    """

    seconds: int = 10
    memory_mb: int = 1024
    workers: int = 4

    def require_isolation(self) -> None:
        """Raises UserError where a process cannot be cut off from the network."""
        if not self._prefix:
            raise UserError(
                "suite.execute_code=true needs `unshare` (Linux, util-linux) and the right to make user or "
                "network namespaces, and this machine has not both: run in a container that allows them, or "
                "leave out what executes code with suite.execute_code=false"
            )

    def run_all(self, programs: Sequence[str]) -> list[bool]:
        """Whether each program came to its end without an exception, in order."""
        self.require_isolation()
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self._passes, programs))

    def _passes(self, program: str) -> bool:
        token = secrets.token_hex(16)  # a program that merely exits with 0 has not passed
        limits = [str(self.seconds), str(self.memory_mb << 20), token]
        with tempfile.TemporaryDirectory() as folder:
            try:
                result = subprocess.run(
                    [*self._prefix, sys.executable, "-I", "-S", "-c", RUNNER, *limits],
                    input=program,
                    capture_output=True,
                    encoding="utf-8",
                    errors="replace",
                    cwd=folder,
                    env={"PYTHONDONTWRITEBYTECODE": "1"},
                    timeout=self.seconds + 2,  # a program that sleeps uses no processor time
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return False
        return result.stdout == token

    @cached_property
    def _prefix(self) -> list[str]:
        """The command that isolates what follows it; empty where there is none."""
        unshare = shutil.which("unshare")
        if unshare is None:
            return []
        for rights in (["--user", "--map-current-user"], []):  # the second is for root without user namespaces
            command = [unshare, *rights, *NAMESPACES, "--"]
            if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
                return command
        return []


def humaneval_program(problem: dict[str, Any], completion: str, *, fenced: bool) -> str:
    """A HumanEval problem with a model's completion and its tests; passes where all assertions hold.

    `fenced`: the completion stands in a Markdown code block and ends with it.
    """
    body = completion.partition("```")[0] if fenced else completion
    return f"{problem['prompt']}{body}\n{problem['test']}\ncheck({problem['entry_point']})\n"
