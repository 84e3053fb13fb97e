"""Hooks that are there for as long as a context lasts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Keep hooks on their modules within the context; after it they are gone, whatever happened in it.

    handles: what registering each hook gave. A generator registers them as it is walked through, so that hooks
    are taken away again where registering a later one fails.
    """
    placed: list[RemovableHandle] = []
    try:
        for handle in handles:
            placed.append(handle)
        yield
    finally:
        for handle in placed:
            handle.remove()
