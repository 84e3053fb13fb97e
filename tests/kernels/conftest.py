"""How kernels run in a test: compiled, in plain torch or emulated; without a compiler tests are skipped."""

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from wisparse.kernels.cpu.build import NoCompilerError
from wisparse.kernels.cpu.gemv import choose_backend
from wisparse.kernels.cuda import attention as cuda_attention
from wisparse.kernels.cuda import head as cuda_head
from wisparse.kernels.cuda import predicted, ranked
from wisparse.kernels.cuda import product as cuda_product
from wisparse.kernels.cuda import select as cuda_select
from wisparse.kernels.cuda.compiled import FOLDER
from wisparse.kernels.cuda.compiled import compiled as compiled_for


def choose_or_skip(name: str) -> None:
    try:
        choose_backend(name)
    except NoCompilerError as error:
        pytest.skip(str(error))


@pytest.fixture(params=["c++", "torch"])
def implementation(request):
    choose_or_skip(request.param)
    yield request.param
    choose_backend("automatic")


@pytest.fixture
def compiled():
    choose_or_skip("c++")
    yield
    choose_backend("automatic")


LAUNCHING = (cuda_product, cuda_attention, cuda_select, cuda_head, predicted, ranked)
"""Modules that launch CUDA kernels."""
EMULATOR, KERNELS = Path(__file__).parent / "cuda", FOLDER
EMULATED = Path(__file__).parents[2] / ".cache" / "emulated"
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-w", f"-I{EMULATOR}", f"-I{KERNELS}"]


@cache
def sources_digest() -> str:
    """A name of everything that emulated kernels are made from, besides their constants."""
    files = sorted(one for folder in (EMULATOR, KERNELS) for one in folder.iterdir() if one.is_file())
    version = subprocess.run(["g++", "--version"], check=True, capture_output=True).stdout
    return hashlib.sha256(b"".join([version, *(one.read_bytes() for one in files)])).hexdigest()


@cache
def made(name: str, *arguments: str) -> Path:
    """What g++ makes of arguments, made once for all processes and sessions."""
    digest = hashlib.sha256(repr((FLAGS, arguments, sources_digest())).encode()).hexdigest()
    path = EMULATED / f"{digest[:16]}-{name}"
    if not path.exists():
        EMULATED.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=EMULATED) as folder:
            unfinished = Path(folder) / name
            command = ["g++", *FLAGS, *arguments, "-o", str(unfinished)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            unfinished.replace(path)  # whole or not at all, whoever else makes it
    return path


@cache
def emulated(name: str, constants: tuple[str, ...]) -> ctypes.CDLL:
    """NAME_emulated.cpp compiled for some constants."""
    emulator = made("emulator.o", "-c", str(EMULATOR / "emulator.cpp"))
    source = str(EMULATOR / f"{name}_emulated.cpp")
    return ctypes.CDLL(str(made(f"{name}.so", "-shared", *constants, source, str(emulator))))


def emulated_launch(name, constants, blocks, threads, arguments, pdl):
    """`cuda_compiled.launch` on a CPU: the same source through g++, run by the emulator."""
    pointers = [None if one is None else one.data_ptr() for one in arguments]
    kernel = emulated(name, tuple(f"-D{key}={value}" for key, value in constants.items()))
    waiting = kernel.run(blocks, *map(ctypes.c_void_p, pointers))
    assert waiting == 0, f"{waiting} threads of {name} wait for what never comes"


@pytest.fixture
def cuda_kernels_run(monkeypatch):
    """Products, attention and selection of CUDA C++ compiled on a GPU that can run them, else emulated."""
    if torch.cuda.is_available() and cuda_product.runs_cuda_products(torch.device("cuda")):
        return
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to emulate CUDA kernels with")
    for module in LAUNCHING:
        monkeypatch.setattr(module, "launch", emulated_launch)


@pytest.fixture
def compiled_sizes(monkeypatch):
    """Bytes of each launch's machine code, of compute capability 9.0: nothing is started, no GPU is needed."""
    pytest.importorskip("cuda.bindings", reason="NVRTC comes with torch's CUDA build")
    sizes = []

    def compile_only(kernel, constants, *_):
        sizes.append(len(compiled_for(kernel, constants, (9, 0))))

    for module in LAUNCHING:
        monkeypatch.setattr(module, "launch", compile_only)
    return sizes
