"""The compiled CPU kernels behind ctypes. Arguments are checked in `cpu_gemv`."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_int, c_int64, c_void_p, sizeof

import torch
from torch import Tensor

from .build import BuildError, load
from .kept_channels import KeptChannels
from .weights import AnyWeight, WeightFields, fields_of

BFLOAT16 = torch.bfloat16


def check_layout(sizes: Callable[[], int], fields: type[Structure]) -> None:
    """Raise BuildError where C++ lays a structure out otherwise than Python does."""
    if sizes() != sizeof(fields):
        raise BuildError(f"the compiled CPU kernels take {sizes()} bytes for {fields.__name__}: update both")


class CompiledKernels:
    """C++ with OpenMP, on as many threads as torch uses. Raises NoCompilerError and BuildError."""

    name = "c++"

    def __init__(self) -> None:
        self.library = library = load()
        check_layout(library.weight_bytes, WeightFields)
        activations = (c_void_p, c_int, c_int64, c_int64, c_int64, c_void_p)
        weight = POINTER(WeightFields)
        kept = (c_void_p, c_void_p, c_void_p)
        self._by_threshold = library.compact_by_threshold
        self._by_threshold.argtypes = (*activations, *kept)
        self._by_threshold.restype = c_int64
        self._by_top_k = library.compact_by_top_k
        self._by_top_k.argtypes = (*activations, c_int64, *kept)
        self._by_top_k.restype = c_int64
        self._gather_gemv = library.gather_gemv
        self._gather_gemv.argtypes = (c_void_p, c_void_p, c_int64, c_int64, weight, c_void_p, c_int)
        self._gather_gemv.restype = None
        self._row_dots = library.row_dots
        inputs = (c_void_p, c_int, c_int64)
        self._row_dots.argtypes = (c_void_p, c_int64, c_int64, *inputs, weight, c_void_p, c_int)
        self._row_dots.restype = None

    def compact_by_threshold(self, x: Tensor, thresholds: Tensor, kept: KeptChannels) -> None:
        """Fill `kept` with the channels where |x| ≥ thresholds."""
        kept.count = self._by_threshold(
            x.data_ptr(),
            x.dtype is BFLOAT16,
            x.stride(0),
            kept.capacity,
            kept.batch,
            thresholds.data_ptr(),
            kept.channels_pointer,
            kept.values_pointer,
            kept.row_counts_pointer,
        )

    def compact_by_top_k(self, x: Tensor, weights: Tensor, k: int, kept: KeptChannels) -> None:
        """Fill `kept` with each row's top k of |x|·weights."""
        kept.count = self._by_top_k(
            x.data_ptr(),
            x.dtype is BFLOAT16,
            x.stride(0),
            kept.capacity,
            kept.batch,
            weights.data_ptr(),
            k,
            kept.channels_pointer,
            kept.values_pointer,
            kept.row_counts_pointer,
        )

    def gather_gemv(self, kept: KeptChannels, weight: AnyWeight, out: Tensor, by_integers: bool) -> None:
        """out[b] = the sum over kept channels of value · row of the weight; by_integers: see `fields_of`."""
        self._gather_gemv(
            kept.channels_pointer,
            kept.values_pointer,
            kept.count,
            kept.batch,
            byref(fields_of(weight, by_integers)),
            out.data_ptr(),
            torch.get_num_threads(),
        )

    def row_dots(self, x: Tensor, weight_rows: Tensor, kept: KeptChannels, out: Tensor) -> None:
        """out[i, b] = kept row i · x[b]."""
        self._row_dots(
            kept.channels_pointer,
            kept.count,
            kept.batch,
            x.data_ptr(),
            x.dtype is BFLOAT16,
            x.stride(0),
            byref(fields_of(weight_rows)),
            out.data_ptr(),
            torch.get_num_threads(),
        )
