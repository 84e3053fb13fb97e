"""Compiles the CPU kernels with the system's g++ on first use, and loads them.

Why C++ and not numba: numba has no bfloat16, cannot be told vector width, prefetch and which sums stay in
registers, starts a second pool of threads beside torch's, and would be one more heavy dependency. Why no torch
extension: including torch's headers turns seconds of compiling into a minute, and all that is passed is
pointers and sizes.

torch brings its own libgomp. The library is linked against exactly the one that torch has loaded, so that there
is one OpenMP runtime and one pool of threads in the process.

The compiled file lies in a folder named by everything it depends on (sources, flags, compiler, CPU), below
`$WISPARSE_CACHE` or `~/.cache/wisparse`. `python -m wisparse.kernels.cpu.build` compiles ahead of time.
It is compiled for the CPU it runs on, unless `$WISPARSE_MARCH` names a level of x86-64 (`x86-64-v2`,
`x86-64-v3`, `x86-64-v4`): to see what another machine computes, or how fast. From v3 on, all levels give the
same bits (kernels.cpp).
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from ..errors import KernelError
from ..program_end import ends_in_one_line
from ..shared_files import make_folder

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent / "sources"
TORCH_LIBRARY = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
SOURCES = tuple(sorted(FOLDER.rglob("*.cpp")))
HEADERS = tuple(sorted(FOLDER.rglob("*.h")))
FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-shared", "-fPIC", "-Wall", "-Wextra")
FLAGS += ("-Wno-psabi", "-Wno-maybe-uninitialized")  # vectors are never passed on; GCC 12's own headers
FLAGS += ("-ffp-contract=off",)  # the sources say which products are fused with their addition
MARCH_VARIABLE = "WISPARSE_MARCH"
_V2 = ("cx16", "lahf_lm", "popcnt", "ssse3", "sse4_1", "sse4_2")
_V3 = (*_V2, "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
MARCHES = {"native": (), "x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}
"""What the kernels can be compiled for, each with the flags of /proc/cpuinfo that a CPU must show to run it."""
CPU_FACTS = ("vendor_id", "cpu family", "model", "model name", "flags")
CPU_FACTS += ("CPU implementer", "CPU part", "Features")  # what ARM calls them
"""Lines of /proc/cpuinfo that decide which instructions -march=native means."""


class NoCompilerError(Exception):
    """There is no g++ on this machine."""


class BuildError(Exception):
    """g++ did not compile the kernels, or there is nowhere to keep them."""


def compiler() -> str:
    """Path of g++. Raises NoCompilerError where there is none."""
    found = shutil.which("g++")
    if found is None:
        raise NoCompilerError("there is no g++ on PATH; on Debian and Ubuntu: apt-get install g++")
    return found


def loaded_file(address: int) -> str | None:
    """Path of the file whose code or data lies at `address` of this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, _, last = line.split(maxsplit=1)[0].partition("-")
        if int(first, 16) <= address < int(last, 16):
            return line[line.index("/") :] if "/" in line else None
    return None


def openmp_runtime(library: str | Path = TORCH_LIBRARY) -> str | None:
    """Path of the OpenMP runtime that a loaded library uses, torch's by default; None if it has none.

    Other packages bring runtimes of their own (scikit-learn does): which one is torch's cannot be told by name.
    """
    try:
        function = ctypes.CDLL(str(library)).omp_get_max_threads
    except (AttributeError, OSError):
        return None
    return loaded_file(ctypes.cast(function, ctypes.c_void_p).value)


def cpu_facts() -> dict[str, str]:
    """Facts that identify the first CPU of /proc/cpuinfo."""
    first = Path("/proc/cpuinfo").read_text().split("\n\n", maxsplit=1)[0]
    pairs = (line.partition(":")[::2] for line in first.splitlines())
    return {name.strip(): value.strip() for name, value in pairs if name.strip() in CPU_FACTS}


def runs(march: str) -> bool:
    """Whether this CPU can execute what is compiled for one of MARCHES."""
    return set(MARCHES[march]) <= set(cpu_facts().get("flags", "").split())


def march() -> str:
    """The instruction set that the kernels are compiled for: `$WISPARSE_MARCH`, by default "native".

    Raises KernelError for one that is not in MARCHES or that this CPU cannot run, which would end the process
    at its first instruction.
    """
    name = os.environ.get(MARCH_VARIABLE, "native")
    if name not in MARCHES:
        raise KernelError(f"{MARCH_VARIABLE} is one of {', '.join(MARCHES)}, not '{name}'")
    if not runs(name):
        raise KernelError(f"{MARCH_VARIABLE}={name} needs instructions that this CPU lacks: leave it unset")
    return name


def _command(program: str) -> list[str]:
    runtime = openmp_runtime()
    link = [] if runtime is None else ["-Wl,--as-needed", runtime]  # the system's is then not needed
    return [program, *FLAGS, f"-I{FOLDER}", f"-march={march()}", *map(str, SOURCES), *link]


def library_path() -> Path:
    """Where the compiled kernels of these sources, flags, compiler and CPU belong."""
    program = compiler()
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256(repr((_command(program), version, cpu_facts())).encode())
    for source in SOURCES + HEADERS:
        digest.update(source.read_bytes())
    cache = Path(os.environ.get("WISPARSE_CACHE", "~/.cache/wisparse")).expanduser()
    return cache / f"cpu-kernels-{digest.hexdigest()[:16]}" / "kernels.so"


def build() -> Path:
    """The compiled kernels, compiled now unless they already are.

    Raises NoCompilerError, BuildError with the first error of the compiler, and KernelError as `march`.
    """
    library = library_path()
    if library.exists():
        return library
    log.info("compiling the CPU kernels into %s: some seconds, once for this machine", library.parent)
    try:
        make_folder(library.parent)
        with tempfile.TemporaryDirectory(dir=library.parent) as temporary:
            unfinished = Path(temporary) / library.name
            ran = subprocess.run(
                [*_command(compiler()), "-o", str(unfinished)], capture_output=True, text=True, check=False
            )
            if ran.returncode != 0:
                errors = [line for line in ran.stderr.splitlines() if "error" in line] or [ran.stderr.strip()]
                raise BuildError(f"g++ could not compile the CPU kernels: {errors[0]}")
            unfinished.replace(library)  # whole or not at all, whoever else compiles at the same time
    except OSError as error:
        raise BuildError(
            f"cannot keep the compiled CPU kernels ({error}); set WISPARSE_CACHE to a folder you can write"
        ) from error
    return library


def load() -> ctypes.CDLL:
    """The kernels, compiled if need be. Raises as `build` does."""
    library = build()
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise BuildError(f"cannot load the compiled CPU kernels ({error}); remove {library.parent}") from error


@ends_in_one_line()
def main() -> None:
    """Compile ahead of time and say what was done; a machine without a compiler is told, and is no error."""
    try:
        print(f"CPU kernels: {build()}")
    except (NoCompilerError, BuildError) as error:
        print(f"CPU kernels: not compiled, plain torch will be used: {error}")


if __name__ == "__main__":
    main()
