"""How fast a device reads memory: the ceiling that every decode is measured against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

READ_BYTES = {"cpu": 512 << 20, "cuda": 8 << 30}
"""Far beyond the caches of either."""


def read_bandwidth(device: torch.device, repeats: int = 7) -> float:
    """Bytes a second that a plain reduction reads from memory, median of several."""
    size = READ_BYTES[device.type]
    if device.type == "cuda":
        size = min(size, torch.cuda.mem_get_info(device)[0] // 2)
    values = torch.ones(size // 4, dtype=torch.float32, device=device)
    values.sum()  # the first call loads kernels
    return size / statistics.median(seconds(values.sum, device) for _ in range(repeats))


def seconds(work: Callable[[], Tensor], device: torch.device) -> float:
    """Wall-clock seconds of one call, the device's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
