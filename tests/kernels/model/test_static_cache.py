"""The cache's memory, looked at before any of it is taken."""

import pytest
import torch
from wisparse.kernels.errors import KernelError
from wisparse.kernels.model import static_cache


def test_a_cache_beyond_the_memory_that_is_free_is_refused_in_one_line(monkeypatch):
    """What torch holds and does not use is free, too."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 5 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 4 * 10**9)
    static_cache._check_room(3 * 10**9, 64, 2048, torch.device("cuda"))
    expected = "2048 tokens for 64 rows takes 3.1 GB, and 3.0 GB are free"
    with pytest.raises(KernelError, match=expected):
        static_cache._check_room(31 * 10**8, 64, 2048, torch.device("cuda"))
    static_cache._check_room(31 * 10**8, 64, 2048, torch.device("cpu"))
