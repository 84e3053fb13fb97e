"""One cell on several processes, each with a device of its own, started by `accelerate launch`.

    accelerate launch --multi_gpu --num_processes 2 repro/run.py model=llama3.1-8b method=wisparse suite=paper

Every process has the whole model and makes the same batches in the same order; each computes every N-th of
them, and everyone's results are put back in order. A batch is what it would be with one process, so the numbers
are the same for any N. Plans are made by the main process and read by the others; it alone writes and prints.

What is exchanged are short lists of Python numbers and strings; they go through gloo, past the GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from copy import copy
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import distributed

from ..method.errors import UserError
from ..method.running.traffic import TrafficCounter

Entry = TypeVar("Entry")
Result = TypeVar("Result")

LONGEST_WAIT = timedelta(days=7)
"""Longest wait of the other processes: a search at a paper's budget takes the main process hours."""


class OtherProcessError(Exception):
    """Another process failed, and what was asked of all cannot be had."""


def join() -> None:
    """Meet the other processes of `accelerate launch` or torchrun; without one of them this process is alone.

    Each process's CUDA device becomes its current one, which `cuda` without a number then means.
    """
    if "LOCAL_RANK" not in os.environ:
        return
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine may have a name it cannot look up
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    PartialState(cpu=on_cpu, backend="gloo", timeout=LONGEST_WAIT)


def leave() -> None:
    """Part from the others in order: one that ends while another still sends would take it down."""
    if _joined():
        distributed.destroy_process_group()


def count() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if _joined() else 1


def index() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if _joined() else 0


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def is_main() -> bool:
    """Whether this process makes plans, writes and prints."""
    return index() == 0


def gather(value: Result) -> list[Result]:
    """Everyone's value, by process. Raises OtherProcessError when a process failed on its way here."""
    return [found for found, _ in _exchange(value, None)]


def announce(failure: str) -> None:
    """Tell the others, who wait for a value of this process, why none will come."""
    try:
        _exchange(None, failure)
    except OtherProcessError:
        return  # they failed as well; this process reports its own failure


def wait() -> None:
    """Go on when every process has come here."""
    gather(None)


def of_main(make: Callable[[], Result]) -> Result:
    """Object that the main process makes, handed to every process."""
    return gather(make() if is_main() else None)[0]


def spread(entries: Sequence[Entry], compute: Callable[[Entry], Result]) -> list[Result]:
    """`compute` of every entry, in order; each process computes every N-th."""
    n = count()
    by_process = gather([compute(entry) for entry in entries[index() :: n]])
    return [by_process[number % n][number // n] for number in range(len(entries))]


def _exchange(value: Any, failure: str | None) -> list[tuple[Any, str | None]]:
    if not _joined():
        return [(value, failure)]
    everyone: list[Any] = [None] * count()
    distributed.all_gather_object(everyone, (value, failure))
    for number, (_, failed) in enumerate(everyone):
        if failed is not None and number != index():
            raise OtherProcessError(f"process {number}: {failed}")
    return everyone


def _summed(by_process: Sequence[dict[str, int]]) -> dict[str, int]:
    names = {name: None for by_name in by_process for name in by_name}
    return {name: sum(by_name.get(name, 0) for by_name in by_process) for name in names}


class SharedTrafficCounter(TrafficCounter):
    """Counts what all processes dropped; its report must be asked for by all of them."""

    def report(self) -> dict[str, Any]:
        """See `TrafficCounter`; sums of whole numbers, the same for any number of processes."""
        dropped = {name: int(number) for name, number in self._dropped.items()}
        unread = {name: int(number) for name, number in self._unread.items()}
        numbers = (self._tokens, self._sparse_tokens, self._sparse_rows, self._unseen)
        found = gather((*map(int, numbers), dropped, unread))
        total = copy(self)
        total._tokens, total._sparse_tokens, total._sparse_rows, total._unseen = (
            sum(one[part] for one in found) for part in range(4)
        )
        total._dropped, total._unread = (_summed([one[part] for one in found]) for part in (4, 5))
        return super(SharedTrafficCounter, total).report()


def check(device: str, latency: str) -> None:
    """Raises UserError for what several processes cannot do."""
    if count() == 1:
        return
    if latency != "none":
        raise UserError(f"latency={latency} is measured by one process: run it without accelerate launch")
    if ":" in device:
        raise UserError(f"model.device={device} is one device for {count()} processes; use model.device=auto")
