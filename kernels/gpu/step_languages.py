"""Which language the launches of a decode step are written in, by the part of the step that they belong to."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from ..cuda.product import Normed

PARTS = {
    "attention": "attention",
    "compact": "norms",
    "from_sums": "products",
    "gemv": "products",
    "head": "lm_head",
    "library_product": "products",
    "low_rank": "products",
    "neurons": "products",
    "predicted": "products",
    "product": "products",
    "router": "selection",
    "select": "selection",
    "shared_lists": "selection",
    "short_attention": "attention",
}
"""Part of a step that launches belong to, by their module."""
LANGUAGES = {"cuda": "cuda", "library_product": "torch"}
"""Language of launches by their folder or module; of all others it is Triton."""


def languages_of(launches: Iterable[partial[None]]) -> dict[str, str]:
    """Languages by part; a norm within a product counts as both."""
    found: dict[str, set[str]] = {}
    for launch in launches:
        function = launch
        while isinstance(function, partial):
            function = function.func
        *_, folder, module = function.__module__.split(".")
        language = LANGUAGES.get(module) or LANGUAGES.get(folder, "triton")
        found.setdefault(PARTS[module], set()).add(language)
        if any(isinstance(argument, Normed) for argument in launch.args):
            found.setdefault("norms", set()).add(language)
    return {part: " and ".join(sorted(languages)) for part, languages in sorted(found.items())}
