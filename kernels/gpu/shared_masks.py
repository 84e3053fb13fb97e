"""Launches of a site whose rows share a mask: what decides which channels are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from ..cuda.select import cuda_select_together
from ..triton.shared_lists import magnitudes_of, shared_lists
from .sites import Reads


def deciding(
    reads: Reads, residual: Tensor, norm: tuple[Tensor, Tensor, float] | None
) -> Iterator[Callable[..., None]]:
    """Launches that list the channels which the rows read together.

    norm: (squares, gain, ε) where x is the normalised residual stream, written now.
    """
    rule = reads.shared
    if norm is not None:
        yield partial(magnitudes_of, residual, rule, norm, x_out=reads.x)
    else:
        yield partial(magnitudes_of, reads.x, rule)
    if rule.smallest is not None:
        yield partial(cuda_select_together, rule.magnitudes, rule.score_weights, rule.kept, rule.smallest)
    yield partial(shared_lists, reads.x, rule, reads.lists)
