"""Time on a GPU: launches inside a CUDA graph, medians over replays, data that L2 does not hold."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from ...errors import KernelError

Clock = Callable[[Callable[[int], None], int], float]
"""Microseconds of one call of a function of the copy that it works on, given the number of copies."""

REPLAYS = 7
CALLS_A_GRAPH = 24
L2_MULTIPLE = 6
"""Copies of a weight together are so many times the size of L2: sparse kernels read only some of the rows."""


def graph_clock(function: Callable[[int], None], copies: int) -> float:
    """Median microseconds of one call, the copies in turn. Raises KernelError without a CUDA GPU."""
    if not torch.cuda.is_available():
        raise KernelError("kernels are timed on a CUDA GPU; there is none")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function(0)
    torch.cuda.current_stream().wait_stream(stream)
    calls = -(-CALLS_A_GRAPH // copies) * copies
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in range(calls):
            function(call % copies)
    graph.replay()
    return median_milliseconds(graph.replay, REPLAYS) * 1e3 / calls


def median_milliseconds(
    call: Callable[[], object], repeats: int, prepare: Callable[[], object] = lambda: None
) -> float:
    """Median of the calls' times on the GPU, each behind `prepare`, which is not timed."""
    times = []
    for _ in range(repeats):
        prepare()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def cold_copies(size: int, device: torch.device) -> int:
    """Copies of `size` bytes to rotate through so that none is found in L2."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, -(-L2_MULTIPLE * cache // size))


def device_name(device: torch.device) -> str:
    """Name that the device gives itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU's memory that tensors can have, those that torch keeps of freed ones among them."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept
