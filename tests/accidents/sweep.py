"""A small sweep to which accidents happen: how it is started, what it has finished, what it left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wisparse.kernels.shared_files import release, taken
from wisparse.repro import run
from wisparse.repro.configuration import REPOSITORY

CELLS = ["method=teal,wisparse", "sparsity=0.4,0.5"]
SETTINGS = [
    "search=minimal", "calibration.sequences=1", "calibration.length=64", "suite=heldout", "suite.documents=2",
    "logger=none",
]  # fmt: skip
KEPT = {"record.json", "items.json", "plan.json", "plan.safetensors"}


@dataclass(frozen=True)
class Sweep:
    """The sweep with its own folders below one."""

    folder: Path

    @property
    def outputs(self) -> Path:
        """Folder of the cells."""
        return self.folder / "outputs"

    @property
    def plans(self) -> Path:
        """Folder of the plans."""
        return self.folder / "plans"

    @property
    def log(self) -> Path:
        """What all commands have said."""
        return self.folder / "log"

    @property
    def _arguments(self) -> list[str]:
        return ["-m", *CELLS, *SETTINGS, f"output_dir={self.outputs}", f"cache_dir={self.plans}"]

    def fork(self) -> int:
        """Start it in a copy of this process, which has the libraries imported; its process id."""
        self.folder.mkdir(parents=True, exist_ok=True)
        process = os.fork()
        if process:
            return process
        code = 1
        with suppress(BaseException), self.log.open("a", encoding="utf-8") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            sys.argv = [str(REPOSITORY / "repro/run.py"), *self._arguments]
            try:
                run.main()
            except SystemExit as ended:
                code = int(ended.code or 0)
        os._exit(code)

    def start(self, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start it as a user does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(REPOSITORY / "repro/run.py"), *self._arguments]
        return subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def to_the_end(self) -> float:
        """Run it in a forked process until it has ended; seconds. Raises RuntimeError where it fails."""
        begin = time.perf_counter()
        if code := ended(self.fork()):
            raise RuntimeError(f"the sweep ended with {code}:\n{self.log.read_text(encoding='utf-8')}")
        return time.perf_counter() - begin

    def finished(self) -> dict[str, str]:
        """Content of every finished cell's record, by its folder."""
        return {str(path.parent): path.read_text() for path in self.outputs.rglob("record.json")}

    def table(self) -> list[dict[str, Any]]:
        """What a table is made of, for each cell."""
        rows = []
        for text in self.finished().values():
            record = json.loads(text)
            rows.append(
                {name: record[name] for name in ("perplexity", "average", "items_sha256")}
                | {"cell": record["cell"]["name"], "plan": record["plan"]["sha256"]}
                | {"realised": record["realised"]["realised_sparsity"]}
            )
        return sorted(rows, key=lambda row: str(row["cell"]))

    def leftovers(self) -> list[str]:
        """Files that are no result, and locks that are still held."""
        files = [path for path in self.folder.rglob("*") if path.is_file() and path != self.log]
        left = [path for path in files if path.name not in KEPT]
        for lock in self.folder.rglob("*.lock"):
            descriptor = taken(lock)
            if descriptor is None:
                left.append(lock.with_suffix(".held"))
            else:
                release(lock, descriptor)
        return [str(path.relative_to(self.folder)) for path in left]


def ended(process: int) -> int:
    """Exit code of a forked process, once it has ended; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
