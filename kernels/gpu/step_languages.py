"""Which language the launches of a decode step are written in, by the part of the step that they belong to."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from ..cuda.product import Normed

CUDA, TRITON, TORCH = "cuda", "triton", "torch"
PARTS = {
    "cuda.attention": ("attention", CUDA),
    "cuda.head": ("lm_head", CUDA),
    "cuda.predicted": ("products", CUDA),
    "cuda.product": ("products", CUDA),
    "cuda.ranked": ("products", CUDA),
    "cuda.select": ("selection", CUDA),
    "gpu.library_product": ("products", TORCH),
    "gpu.low_rank": ("products", TRITON),
    "triton.attention.general": ("attention", TRITON),
    "triton.attention.router": ("selection", TRITON),
    "triton.attention.selected": ("attention", TRITON),
    "triton.attention.short": ("attention", TRITON),
    "triton.compact": ("norms", TRITON),
    "triton.from_sums": ("products", TRITON),
    "triton.gemv": ("products", TRITON),
    "triton.group_choice": ("selection", TRITON),
    "triton.neurons": ("products", TRITON),
    "triton.select": ("selection", TRITON),
    "triton.shared_lists": ("selection", TRITON),
}
"""Part of a step that launches belong to, and their language, by the module that they are from."""


def languages_of(launches: Iterable[partial[None]]) -> dict[str, str]:
    """Languages by part; a norm within a product counts as both."""
    found: dict[str, set[str]] = {}
    for launch in launches:
        function = launch
        while isinstance(function, partial):
            function = function.func
        part, language = PARTS[function.__module__.rpartition(".kernels.")[2]]
        found.setdefault(part, set()).add(language)
        if any(isinstance(argument, Normed) for argument in launch.args):
            found.setdefault("norms", set()).add(language)
    return {part: " and ".join(sorted(languages)) for part, languages in sorted(found.items())}
