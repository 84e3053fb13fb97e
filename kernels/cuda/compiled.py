"""CUDA C++ compiled by NVRTC on first use, and started on torch's current stream.

NVRTC and the driver's bindings come with torch's CUDA build; no CUDA toolkit is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import KernelError

FOLDER = Path(__file__).parent / "sources"
HEADERS = tuple(sorted(path.name for path in FOLDER.glob("*.h")))


def launch(
    name: str,
    constants: Mapping[str, object],
    blocks: int,
    threads: int,
    arguments: tuple[Tensor | None, ...],
    pdl: bool,
) -> None:
    """Start NAME_kernel of NAME.cu with tensors (None: a null pointer) on the device of the first one.

    constants: macros by name, one compiled kernel for each set. pdl: programmatic dependent launch.
    Raises KernelError where NVRTC or the driver refuses.
    """
    from cuda.bindings import driver

    device = arguments[0].device
    function = _function(name, tuple(sorted(constants.items())), device)
    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = blocks, 1, 1
    config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
    config.hStream = driver.CUstream(torch.cuda.current_stream(device).cuda_stream)
    if pdl:
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        config.attrs, config.numAttrs = [attribute], 1
    pointers = tuple(0 if one is None else one.data_ptr() for one in arguments)
    _check(driver.cuLaunchKernelEx(config, function, (pointers, (c_void_p,) * len(pointers)), 0), name)


@cache
def _function(name: str, constants: tuple[tuple[str, object], ...], device: torch.device) -> Any:
    from cuda.bindings import driver

    with torch.cuda.device(device):
        torch.cuda.current_stream().synchronize()  # so that the device's context is current
        module = _check(
            driver.cuModuleLoadData(compiled(name, dict(constants), torch.cuda.get_device_capability())), name
        )
    return _check(driver.cuModuleGetFunction(module, f"{name}_kernel".encode()), name)


def compiled(name: str, constants: Mapping[str, object], capability: tuple[int, int]) -> bytes:
    """NAME.cu as machine code of a compute capability, beside HEADERS; needs no GPU.

    Raises KernelError with the compiler's first error.
    """
    from cuda.bindings import nvrtc

    source = (FOLDER / f"{name}.cu").read_bytes()
    texts, names = [(FOLDER / one).read_bytes() for one in HEADERS], [one.encode() for one in HEADERS]
    program = _check(nvrtc.nvrtcCreateProgram(source, f"{name}.cu".encode(), len(HEADERS), texts, names), name)
    options = [f"--gpu-architecture=sm_{capability[0]}{capability[1]}", "--std=c++17"]
    options += [f"-D{key}={value}" for key, value in constants.items()]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        text = b" " * _check(nvrtc.nvrtcGetProgramLogSize(program), name)
        _check(nvrtc.nvrtcGetProgramLog(program, text), name)
        raise KernelError(f"NVRTC could not compile {name}.cu: {text.decode().strip()}")
    code = b" " * _check(nvrtc.nvrtcGetCUBINSize(program), name)
    _check(nvrtc.nvrtcGetCUBIN(program, code), name)
    return code


def _check(found: tuple[Any, ...], name: str) -> Any:
    status, *values = found
    if int(status) != 0:
        raise KernelError(f"{name}: CUDA answered {status.name}")
    return values[0] if values else None
