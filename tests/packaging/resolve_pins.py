"""Every pin of constraints.txt against the package index, for each Python and machine that the set-up supports.

A pin without a wheel for some Python fails only on a machine that has that Python; this asks the index for all
of them from one machine (`make check-pins`, before a release). It also follows what `wisparse[dev]` needs
through the wheels' metadata: all of it must be pinned, at versions that whoever needs them accepts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")
GLIBC = range(28, 4, -1)  # 2.28 is what torch's own wheels ask for
SOURCES = {
    "antlr4-python3-runtime": "omegaconf needs this release, of which there are only sources; pure Python",
    "rouge-score": "lm-eval needs it; only sources of any release; pure Python",
    "sqlitedict": "lm-eval needs it; only sources of any release; pure Python",
    "word2number": "lm-eval needs it; only sources of any release; pure Python",
}
"""Pins that are installed from sources, and why."""

ROW = "{:8}{:10}{:>6}{:>8}{:>9}{:>8}"
Pins = dict[str, Requirement]
Wheels = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Target:
    """One Python on one kind of machine, as environment markers and pip's options see it."""

    python: str
    machine: str

    @property
    def markers(self) -> dict[str, str]:
        return {
            "python_version": self.python,
            "python_full_version": f"{self.python}.0",
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "platform_python_implementation": "CPython",
            "platform_machine": self.machine,
            "platform_system": "Linux",
            "platform_release": "",
            "platform_version": "",
            "sys_platform": "linux",
            "os_name": "posix",
        }

    @property
    def options(self) -> list[str]:
        platforms = [f"manylinux_2_{minor}_{self.machine}" for minor in GLIBC]
        platforms += [f"manylinux2014_{self.machine}", f"linux_{self.machine}"]
        version = [f"--python-version={self.python}", "--implementation=cp"]
        return [*version, *(f"--platform={platform}" for platform in platforms)]

    def applies(self, requirement: Requirement, extra: str = "") -> bool:
        return requirement.marker is None or requirement.marker.evaluate({**self.markers, "extra": extra})


def read_pins(target: Target) -> Pins:
    """The pins that hold for a target, by canonical name; more than one of a name ends the program."""
    pins: Pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        text = line.split("#")[0].strip()
        if not text or not target.applies(pin := Requirement(text)):
            continue
        name = canonicalize_name(pin.name)
        if name in pins:
            raise SystemExit(f"error: {name} is pinned twice for Python {target.python} on {target.machine}")
        pins[name] = pin
    return pins


def ask(target: Target, pins: list[Requirement]) -> tuple[list[dict[str, Any]], str]:
    """What pip would install for these pins alone, with its metadata; and why it would not, or ""."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps"]
        # fast-deps: the metadata out of a wheel, without the wheel's gigabytes.
        command += ["--quiet", "--disable-pip-version-check", "--use-feature=fast-deps"]
        command += [f"--report={report}", f"--target={folder}", "--only-binary=:all:", *target.options]
        command += [f"{pin.name}{pin.specifier}" for pin in pins]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode == 0:
            return json.loads(report.read_text(encoding="utf-8"))["install"], ""
        errors = [line for line in finished.stderr.splitlines() if line.startswith("ERROR:")]
        return [], errors[-1].removeprefix("ERROR: ") if errors else finished.stderr.strip()


def find_wheels(target: Target, pins: Pins) -> tuple[Wheels, dict[str, str]]:
    """Metadata of each pin's wheel, and the pins that have none with pip's reason."""
    left, failed = dict(pins), {}
    while left:
        found, reason = ask(target, list(left.values()))
        if not reason:
            return {canonicalize_name(one["metadata"]["name"]): one["metadata"] for one in found}, failed
        # pip stops at the first pin that it cannot have and names it at the end of its message.
        missing = canonicalize_name(reason.rpartition(" for ")[2].split("==")[0])
        if missing not in left:
            raise SystemExit(f"error: pip says: {reason}")
        failed[missing] = reason
        del left[missing]
    return {}, failed


def own_requirements(target: Target) -> Iterator[tuple[str, Requirement]]:
    """What `wisparse[dev]` asks for, its own extras followed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras, seen = project["optional-dependencies"], {"dev"}
    left = [*project["dependencies"], *extras["dev"]]
    while left:
        requirement = Requirement(left.pop())
        if requirement.name == "wisparse":
            for extra in sorted(requirement.extras - seen):
                seen.add(extra)
                left += extras[extra]
        elif target.applies(requirement):
            yield "wisparse", requirement


def closure_faults(target: Target, pins: Pins, wheels: Wheels) -> Iterator[str]:
    """What is needed and not pinned, or pinned at a version that who needs it refuses."""
    left, done = list(own_requirements(target)), set()
    while left:
        by, requirement = left.pop()
        name = canonicalize_name(requirement.name)
        if name not in pins:
            yield f"{by} needs {requirement}, which is not pinned"
            continue
        version = str(pins[name].specifier).removeprefix("==")
        if not requirement.specifier.contains(version, prereleases=True):
            yield f"{by} needs {requirement}, pinned is {version}"
        for extra in {"", *requirement.extras} - {extra for done_name, extra in done if done_name == name}:
            done.add((name, extra))
            needed = map(Requirement, wheels.get(name, {}).get("requires_dist", []))
            left += [(name, one) for one in needed if target.applies(one, extra)]


def check(target: Target) -> int:
    """Print the row of a target and each fault of its pins; returns how many there are."""
    pins = read_pins(target)
    wheels, failed = find_wheels(target, {name: pin for name, pin in pins.items() if name not in SOURCES})
    faults = [f"{pins[name]}: {reason}" for name, reason in failed.items()]
    faults += dict.fromkeys(closure_faults(target, pins, wheels))
    counts = (len(pins), len(wheels), len(SOURCES.keys() & pins.keys()), len(faults))
    print(ROW.format(target.python, target.machine, *counts), flush=True)
    for fault in faults:
        print(f"error: Python {target.python} on {target.machine}: {fault}", file=sys.stderr)
    return len(faults)


def main() -> None:
    """Print a row for each Python and machine, with its faults below; exit code 1 when there is one."""
    print(ROW.format("Python", "machine", "pins", "wheels", "sources", "faults"))
    faults = sum(check(Target(python, machine)) for python in PYTHONS for machine in MACHINES)
    for name, reason in SOURCES.items():
        print(f"from sources: {name} ({reason})")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
