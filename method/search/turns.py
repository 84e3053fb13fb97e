"""Candidates of a search in turns: as many at once as asked for, fewer where memory does not hold them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

log = logging.getLogger(__name__)


class Turns:
    """So many candidates at once, and half as many from where a GPU's memory did not hold them."""

    def __init__(self, at_once: int) -> None:
        """Begin with turns of at most `at_once` candidates, of one at least."""
        self._at_once = max(1, at_once)

    def over(self, count: int, evaluate: Callable[[slice], Tensor]) -> Iterator[tuple[slice, Tensor]]:
        """Each turn's candidates out of `count` and what `evaluate` makes of them, in order.

        Raises torch.OutOfMemoryError where one candidate alone does not fit.
        """
        first = 0
        while first < count:
            part = slice(first, min(first + self._at_once, count))
            found = self._attempt(evaluate, part)
            if found is not None:
                yield part, found
                first = part.stop

    def _attempt(self, evaluate: Callable[[slice], Tensor], part: slice) -> Tensor | None:
        size = part.stop - part.start
        try:
            return evaluate(part)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        # Only here: the error, while it is handled, holds on to what was computed so far.
        self._at_once = size // 2
        log.info("no memory for %d candidates at once; from here on %d", size, self._at_once)
        torch.cuda.empty_cache()
        return None
