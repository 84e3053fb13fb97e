"""Work that is done again and again on the same tensors, started at once where a GPU does it."""

from __future__ import annotations

from collections.abc import Callable

import torch

ROOM = 8 << 30
"""Bytes that have to be free for what is captured, which cannot take what torch holds for others."""


class Repeated:
    """`compute`, which changes tensors in place, as one CUDA graph from its second time on.

    A step of small products takes a processor longer to start than a GPU to compute. The first time is as on
    any device: what is compiled or looked up is so before the graph is captured.
    """

    def __init__(self, compute: Callable[[], None], device: torch.device) -> None:
        self._compute, self._device = compute, device
        self._is_first = True
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Do it on the current stream."""
        if self._device.type != "cuda" or self._is_first:
            self._is_first = False
            self._compute()
            return
        if self._graph is None:
            self._graph = self._captured()
        self._graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph:
        if torch.cuda.mem_get_info(self._device)[0] < ROOM:
            torch.cuda.empty_cache()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        # Not by torch.cuda.graph, which gives all that torch holds back to the GPU before.
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._compute()
            finally:
                graph.capture_end()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        return graph
