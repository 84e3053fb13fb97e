"""How kernels run in a test: compiled, in plain torch or emulated; without a compiler tests are skipped."""

import ctypes
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from wisparse.kernels.cpu.build import NoCompilerError
from wisparse.kernels.cpu.gemv import choose_backend
from wisparse.kernels.cuda import attention as cuda_attention
from wisparse.kernels.cuda import product as cuda_product
from wisparse.kernels.cuda import select as cuda_select


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


@pytest.fixture(scope="session")
def emulated_launch(tmp_path_factory):
    """`cuda_compiled.launch` on a CPU: the same source through g++, a thread for each thread."""
    folder, here = tmp_path_factory.mktemp("emulated"), Path(__file__).parent / "cuda"

    def launch(name, constants, blocks, threads, arguments, pdl):
        flags = [f"-D{key}={value}" for key, value in constants.items()]
        library = folder / f"{name}-{hashlib.sha256(' '.join(flags).encode()).hexdigest()[:16]}.so"
        if not library.exists():
            command = ["g++", "-std=c++20", "-O1", "-pthread", "-shared", "-fPIC", "-w", *flags, f"-I{here}"]
            command += [f"-I{Path(cuda_product.__file__).parent}", str(here / f"{name}_emulated.cpp")]
            subprocess.run([*command, "-o", str(library)], check=True, capture_output=True, text=True)
        pointers = [None if one is None else one.data_ptr() for one in arguments]
        ctypes.CDLL(str(library)).run(blocks, *map(ctypes.c_void_p, pointers))

    return launch


@pytest.fixture
def cuda_kernels_run(request, monkeypatch):
    """Products, attention and selection of CUDA C++ compiled on a GPU that can run them, else emulated."""
    if torch.cuda.is_available() and cuda_product.runs_cuda_products(torch.device("cuda")):
        return
    if shutil.which("g++") is None:
        pytest.skip("there is no g++ to emulate CUDA kernels with")
    for module in (cuda_product, cuda_attention, cuda_select):
        monkeypatch.setattr(module, "launch", request.getfixturevalue("emulated_launch"))
