"""How Triton kernels are started: compiled on a CUDA GPU, or interpreted on a CPU for tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from ..errors import KernelError

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Triton's interpreter runs the kernels; it was asked for by TRITON_INTERPRET=1 before triton was imported."""

ALIGNED = 16
"""Triton compiles a kernel apart for tensors that begin at a multiple of so many bytes."""


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *arguments: Any,
    warps: int = 4,
    stages: int = 1,
    pdl: bool = False,
    **meta: Any,
) -> Any:
    """Start a kernel on the current stream; returns it compiled, None from the interpreter.

    pdl: programmatic dependent launch, the start overlaps with the end of the kernel before (sm_90 and newer);
    a kernel that takes part has a constexpr PDL. The interpreter knows neither that nor warps and stages.
    """
    if INTERPRETED:
        kernel[grid](*arguments, PDL=False, **meta)
        return None
    options = {"launch_pdl": True} if pdl else {}
    return kernel[grid](*arguments, PDL=pdl, num_warps=warps, num_stages=stages, **options, **meta)


class RepeatedLaunch:
    """Launches of one kernel over one grid, outside of a CUDA graph.

    What Triton compiled for the first is started again for all whose arguments it would have taken it for. To
    let it look for it each time would take most of a launch.
    """

    def __init__(self, kernel: Any, grid: tuple[int, ...], **meta: Any) -> None:
        """meta: constants behind the arguments, by name."""
        self._kernel, self._grid, self._meta = kernel, grid, meta
        self._compiled: dict[tuple[object, ...], Callable[..., None]] = {}

    def __call__(self, *arguments: Tensor | int | None) -> None:
        """Start it on the current stream, with 4 warps."""
        kind = tuple(
            (one.dtype, one.device, one.data_ptr() % ALIGNED) if isinstance(one, Tensor) else one
            for one in arguments
        )
        start = self._compiled.get(kind)
        if start is not None:
            start(*arguments)
        elif (compiled := launch(self._kernel, self._grid, *arguments, **self._meta)) is not None:
            constants = self._meta | {"PDL": False}
            behind = [constants[name] for name in self._kernel.arg_names[len(arguments) :]]
            runner = compiled[(*self._grid, 1, 1)[:3]]
            self._compiled[kind] = lambda *some: runner(*some, *behind)


@cache
def repeated(kernel: Any, grid: tuple[int, ...], **meta: Any) -> RepeatedLaunch:
    """The launches of a kernel over a grid, the same ones whenever they are asked for."""
    return RepeatedLaunch(kernel, grid, **meta)


def require_runnable(device: torch.device) -> None:
    """Raises KernelError where Triton kernels can neither be compiled nor interpreted."""
    if device.type != "cuda" and not INTERPRETED:
        raise KernelError(
            f"Triton kernels need a CUDA GPU, these tensors are on {device}; move the model to 'cuda', "
            "or set TRITON_INTERPRET=1 before Python starts to interpret them (slowly) on a CPU"
        )


def supports_dependent_launch(device: torch.device) -> bool:
    """Whether programmatic dependent launch works on this device."""
    return device.type == "cuda" and not INTERPRETED and torch.cuda.get_device_capability(device)[0] >= 9


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below n, which must be positive."""
    return 1 << (n - 1).bit_length()


def blocks_of(n: int, size: int) -> int:
    """Blocks of `size` that cover n."""
    return -(-n // size)


def warps_of(rows: int) -> int:
    """Warps of a program that holds a few hundred channels of so many rows in registers."""
    return min(16, max(4, power_of_two(rows) // 2))


def check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
    """Raises KernelError unless the tensor is contiguous and has this shape and dtype."""
    if tuple(tensor.shape) != shape:
        raise KernelError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    if dtype is not None and tensor.dtype != dtype:
        raise KernelError(f"{name} is {tensor.dtype}, expected {dtype}")
    if not tensor.is_contiguous():
        raise KernelError(f"{name} is not contiguous; call .contiguous() on it")
