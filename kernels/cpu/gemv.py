"""Sparse matrix-vector products on the CPU: which channels are kept, then a product reading only their rows.

A weight is stored once, (in, out), so that prefill is `x @ weight` and a kept channel is one row of it. Rows
may lie further apart than their length: a projection can be some of the columns of a wider tensor (q, k and v,
or gate and up, side by side).

    kept = compact_by_threshold(x, thresholds)          # once for all projections that share x and a rule
    out = gather_gemv(kept, weight)                     # float32
    out = gather_gemv(keep_all(x), weight)              # the same weight, dense

CHESS and CATS drop neurons of the feed-forward part; up and down are both stored (ffn, hidden) there:

    kept = compact_by_threshold(activation, thresholds)
    kept.values.mul_(row_dots(x, up, kept))
    out = gather_gemv(kept, down)

Two implementations compute this: C++ compiled on first use (`cpu_build` says why C++), and plain torch where
there is no compiler. `backend()` names the one in use. For inference alone: autograd records nothing of it.
"""

from __future__ import annotations

import functools
import logging
from typing import Protocol

import torch
from torch import Tensor

from ..errors import KernelError
from .build import BuildError, NoCompilerError
from .compiled import CompiledKernels
from .kept_channels import LARGEST_BATCH, KeptChannels
from .plain import TorchKernels
from .weights import AnyWeight, check_weight, description, is_matrix

log = logging.getLogger(__name__)


class Kernels(Protocol):
    """Interface of an implementation, whose arguments have been checked."""

    name: str

    def compact_by_threshold(self, x: Tensor, thresholds: Tensor, kept: KeptChannels) -> None: ...
    def compact_by_top_k(self, x: Tensor, weights: Tensor, k: int, kept: KeptChannels) -> None: ...
    def gather_gemv(self, kept: KeptChannels, weight: AnyWeight, out: Tensor, by_integers: bool) -> None: ...
    def row_dots(self, x: Tensor, weight_rows: Tensor, kept: KeptChannels, out: Tensor) -> None: ...


def _automatic() -> Kernels:
    try:
        return CompiledKernels()
    except (NoCompilerError, BuildError) as error:
        log.warning("sparse CPU products run in plain torch, which gains no time: %s", error)
        return TorchKernels()


IMPLEMENTATIONS = {"c++": CompiledKernels, "torch": TorchKernels, "automatic": _automatic}


class _Chosen:
    kernels: Kernels | None = None


def choose_backend(name: str) -> None:
    """Compute with "c++", with "torch", or with "automatic": C++ where it can be compiled (the default).

    Raises NoCompilerError and BuildError if "c++" is asked for and cannot be had, KernelError for another name.
    """
    if name not in IMPLEMENTATIONS:
        raise KernelError(f"a CPU backend is one of {', '.join(IMPLEMENTATIONS)}, not '{name}'")
    _Chosen.kernels = IMPLEMENTATIONS[name]()


def kernels() -> Kernels:
    """The implementation in use, chosen now if none was."""
    if _Chosen.kernels is None:
        choose_backend("automatic")
    return _Chosen.kernels


def backend() -> str:
    """The implementation in use, for records: "c++" or "torch"."""
    return kernels().name


def compact_by_threshold(x: Tensor, thresholds: Tensor, kept: KeptChannels | None = None) -> KeptChannels:
    """Channels that any row of x keeps; a row drops a channel where |x| < t (reference.dropped_by_threshold).

    x: (batch, channels) float32 or bfloat16, batch 1 to 8; thresholds: (channels,) float32; kept: filled and
    returned if given, made otherwise. Raises KernelError.
    """
    kept = _room(x, kept)
    _check_vector(thresholds, "thresholds", kept.capacity)
    kernels().compact_by_threshold(x, thresholds, kept)
    return kept


def compact_by_top_k(x: Tensor, weights: Tensor, k: int, kept: KeptChannels | None = None) -> KeptChannels:
    """Channels in the top k of |x|·weights of any row, with all ties at the k-th (reference.dropped_by_top_k).

    x: (batch, channels) float32 or bfloat16, batch 1 to 8; weights: (channels,) float32; kept: filled and
    returned if given, made otherwise. Raises KernelError.
    """
    kept = _room(x, kept)
    _check_vector(weights, "weights", kept.capacity)
    if k < 0:
        raise KernelError(f"k must not be negative, it is {k}")
    kernels().compact_by_top_k(x, weights, min(k, kept.capacity), kept)
    return kept


def keep_all(x: Tensor, kept: KeptChannels | None = None) -> KeptChannels:
    """Every channel of x, for a dense product from the same weight. x, kept, errors: `compact_by_threshold`."""
    kept = _room(x, kept)
    kernels().compact_by_threshold(x, _no_thresholds(kept.capacity), kept)
    return kept


@functools.cache
def _no_thresholds(channels: int) -> Tensor:
    return torch.zeros(channels, dtype=torch.float32)


def gather_gemv(
    kept: KeptChannels, weight: AnyWeight, out: Tensor | None = None, by_integers: bool = False
) -> Tensor:
    """Sum over the kept channels of value · row of the weight: x @ weight without the dropped rows.

    weight: (in, out) float32, bfloat16, or stored in int8 or int4; columns adjacent, rows at any distance; out:
    (batch, out) float32, contiguous, overwritten. by_integers: C++ rounds values times the scales of int8 and
    int4 to 16 bits (few_bits.h), as a model in bfloat16 can bear. Returns out. C++ gives the same bits on any
    number of threads. Raises KernelError.
    """
    check_weight(weight, kept.capacity)
    shape = (kept.batch, weight.shape[1])
    if out is None:
        out = torch.empty(shape, dtype=torch.float32)
    else:
        _check_out(out, shape)
    kernels().gather_gemv(kept, weight, out, by_integers)
    return out


def all_times(x: Tensor, weight: AnyWeight) -> Tensor:
    """X (rows, in), of any number of rows, times a weight (in, out): (rows, out) float32. See `gather_gemv`."""
    out = torch.empty(x.shape[0], weight.shape[1], dtype=torch.float32)
    for some, place in zip(x.split(LARGEST_BATCH), out.split(LARGEST_BATCH), strict=True):
        gather_gemv(keep_all(some), weight, place)
    return out


def row_dots(x: Tensor, weight_rows: Tensor, kept: KeptChannels, out: Tensor | None = None) -> Tensor:
    """Products of x with the kept rows alone: the outputs of kept neurons whose weights are rows (CHESS, CATS).

    x: (batch, in) float32 or bfloat16; weight_rows: (neurons, in) float32 or bfloat16; kept: a selection among
    the neurons; out: (neurons, batch) float32, contiguous, whose first rows are overwritten. Returns
    (count, batch) float32, in the order of kept.channels: a view of out. Raises KernelError.
    """
    _check_activations(x)
    check_weight(weight_rows, kept.capacity)
    if x.shape[0] != kept.batch or x.shape[1] != weight_rows.shape[1]:
        raise KernelError(
            f"x must be ({kept.batch}, {weight_rows.shape[1]}) for these kept neurons and this weight, "
            f"it is {tuple(x.shape)}"
        )
    if out is None:
        out = torch.empty(kept.capacity, kept.batch, dtype=torch.float32)
    else:
        _check_out(out, (kept.capacity, kept.batch))
    out = out[: kept.count]
    kernels().row_dots(x, weight_rows, kept, out)
    return out


# The checks run some hundred times a token: one expression when all is well, the explanation only when not.


def _check_activations(x: Tensor) -> None:
    if not (is_matrix(x) and 1 <= x.shape[0] <= LARGEST_BATCH and x.shape[1] > 0):
        raise KernelError(
            f"x must be a (batch, channels) CPU tensor, batch 1 to {LARGEST_BATCH}, float32 or bfloat16, with "
            f"adjacent channels; {description(x)}"
        )


def _check_vector(vector: Tensor, name: str, channels: int) -> None:
    if not (_is_float(vector) and vector.shape == (channels,)):
        raise KernelError(
            f"{name} must be a contiguous float32 CPU tensor of {channels} channels; {description(vector)}"
        )


def _check_out(out: Tensor, shape: tuple[int, int]) -> None:
    if not (_is_float(out) and out.shape == shape):
        raise KernelError(f"out must be a contiguous float32 CPU tensor of shape {shape}; {description(out)}")


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.dtype is torch.float32 and tensor.is_contiguous()


def _room(x: Tensor, kept: KeptChannels | None) -> KeptChannels:
    _check_activations(x)
    batch, channels = x.shape
    if kept is None:
        return KeptChannels(channels, batch)
    if kept.capacity != channels or kept.batch != batch:
        raise KernelError(
            f"kept has room for ({kept.batch}, {kept.capacity}) and x is ({batch}, {channels}): make one "
            "KeptChannels for each shape"
        )
    return kept
