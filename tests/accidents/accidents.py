"""Accidents that happen to sweeps: kills, signals, twins, full disks, a read-only home (`make test-accidents`).

Each ends with the very table of an uninterrupted sweep, nothing finished is lost, and nothing is left behind.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from sweep import Sweep, ended

# Imported once, so that kills fall into work and not into imports.
from wisparse.repro.cell import cell, measure  # noqa: F401

ONE_LINE = "interrupted: finished cells are kept, the same command goes on from there"


class Accidents:
    """The accidents, with the table that all have to end with."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random = root, random.Random(seed)
        reference = Sweep(root / "reference")
        self.seconds = reference.to_the_end()
        self.table = reference.table()
        self.check(reference, "uninterrupted", f"{len(self.table)} cells in {self.seconds:.1f} s")

    def check(self, sweep: Sweep, name: str, figures: str) -> None:
        """Print a line, or raise AssertionError where a sweep did not end as the uninterrupted one."""
        assert sweep.table() == self.table, (name, sweep.table(), self.table)
        assert not sweep.leftovers(), f"{name}: left behind: {sweep.leftovers()}"
        print(f"{name:<28} same table, nothing lost or left; {figures}", flush=True)

    def kills(self, number: int) -> None:
        """kill -9 at random moments of sweeps that go on from there; a new one follows a finished one."""
        seconds, sweeps, sweep, finished = 0.0, 0, Sweep(self.root / "kills-0"), {}
        gained = left = 0
        for _ in range(number):
            moment, begin = self.random.uniform(0.2, self.seconds / 4), time.perf_counter()
            process = sweep.fork()
            time.sleep(moment)
            os.kill(process, signal.SIGKILL)
            code = ended(process)
            seconds += time.perf_counter() - begin
            now = sweep.finished()
            lost = [folder for folder, text in finished.items() if now.get(folder) != text]
            assert not lost, f"a finished cell was lost: {lost}"
            gained, finished = gained + len(now) - len(finished), now
            if code == 0:
                self.check(sweep, "  a sweep between kills", "ended by itself")
                sweeps += 1
                sweep, finished = Sweep(self.root / f"kills-{sweeps}"), {}
            left = max(left, len(sweep.leftovers()))
        seconds += sweep.to_the_end()
        whole = self.seconds * (sweeps + 1)
        spent = f"{seconds:.1f} s for {sweeps + 1} sweeps, {whole:.1f} s uninterrupted"
        self.check(
            sweep,
            f"{number} x kill -9",
            f"{spent}; {gained} cells finished between kills, at most {left} files in between",
        )

    def signals(self) -> None:
        """SIGINT and SIGTERM in the middle of a sweep started as users do."""
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            sweep = Sweep(self.root / number.name)
            running = sweep.start()
            while not sweep.finished() and running.poll() is None:
                time.sleep(0.1)
            time.sleep(self.seconds / 8)
            before = sweep.finished()
            running.send_signal(number)
            said = running.communicate()[1].splitlines()
            assert running.returncode == code, (running.returncode, said)
            assert said[-1] == ONE_LINE, said
            assert not any("Traceback" in line for line in said), said
            left = [name for name in sweep.leftovers() if not name.endswith(".progress.jsonl")]
            assert not left, left
            seconds = sweep.to_the_end()
            assert before.items() <= sweep.finished().items()
            self.check(sweep, number.name, f"rc {code}, {len(before)} cells kept, {seconds:.1f} s to the end")

    def twins(self) -> None:
        """Two equal sweeps at once."""
        sweep, begin = Sweep(self.root / "twins"), time.perf_counter()
        codes = [ended(process) for process in (sweep.fork(), sweep.fork())]
        assert codes == [0, 0], sweep.log.read_text()
        computed = sweep.log.read_text().count(" → ")
        assert computed == len(self.table), f"{computed} cells were computed"
        self.check(
            sweep,
            "two equal sweeps at once",
            f"{computed} cells computed once, {time.perf_counter() - begin:.1f} s",
        )

    def full_disks(self) -> None:
        """Disks that are full for outputs or plans, then have room."""
        for name in ("outputs", "plans"):
            sweep = Sweep(self.root / f"full-{name}")
            with mounted(sweep.folder / name, "size=48k"):
                code, begin = ended(sweep.fork()), sweep.finished()
                said = sweep.log.read_text()
                line = next(line for line in said.splitlines() if line.startswith("error: "))
                assert code == 2, said
                assert str(sweep.folder / name) in line, said
                assert "Traceback" not in said, said
                subprocess.run(["mount", "-o", "remount,size=64m", str(sweep.folder / name)], check=True)
                sweep.to_the_end()
                assert begin.items() <= sweep.finished().items()
                self.check(sweep, f"full disk: {name}", f"rc {code}, then with room; it said\n    {line}")

    def read_only(self) -> None:
        """A home that cannot be written is none of the sweep's business; outputs that cannot be are named."""
        sweep, home = Sweep(self.root / "home"), self.root / "a-home"
        with mounted(home, "size=64k,ro"):
            running = sweep.start({"HOME": str(home)})
            said = running.communicate()[1]
            assert running.returncode == 0, said
            self.check(sweep, "read-only home", "rc 0")
        sweep = Sweep(self.root / "closed")
        with mounted(sweep.outputs, "size=64k,ro"):
            code, said = ended(sweep.fork()), sweep.log.read_text()
            line = next(line for line in said.splitlines() if line.startswith("error: "))
            assert code == 2, said
            assert str(sweep.outputs) in line, said
            assert "Traceback" not in said, said
        sweep.to_the_end()
        self.check(sweep, "read-only outputs", f"rc {code}, then elsewhere; it said\n    {line}")


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A small disk in memory."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def main() -> None:
    """Let the accidents happen, in a temporary folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # A shell starts what runs in its background with SIGINT ignored, and sweeps would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as root:
        accidents = Accidents(Path(root), arguments.seed)
        accidents.kills(arguments.kills)
        accidents.signals()
        accidents.twins()
        if os.getuid() == 0:
            accidents.full_disks()
            accidents.read_only()
        else:
            print("full disks, read-only folders: left out, only root can mount them")


if __name__ == "__main__":
    main()
