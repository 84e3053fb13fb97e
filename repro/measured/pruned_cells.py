"""Cells of weights that were pruned: how tables of methods call them, and what is counted of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...kernels.quantised.pruned import INDICES
from ...method.errors import UserError
from .cells import Key, place_of
from .deciding import has_own_weights, quantisation_of

PRUNED = "pruned_"
"""How the names of pruned weights begin in a table of methods."""


def pruned_or_method(record: dict[str, Any]) -> Key:
    """Model, method and nominal sparsity; of pruned weights how they were pruned, and how many are zero.

    Raises UserError for weights in few bits, whose bytes are another question.
    """
    weights = quantisation_of(record)
    if weights["name"] == "none":
        return place_of(record)
    if weights.get("index") not in INDICES:
        raise UserError(
            f"a frontier has weights as they are and pruned ones, not quantisation={weights['name']}; "
            "`python -m wisparse.repro.tables quantised` compares formats"
        )
    sparsity = float(weights["sparsity"])
    how = weights["name"].removesuffix(f"-{sparsity:g}-{weights['index']}")
    return record["model"]["name"], f"{PRUNED}{how}", sparsity


def own_weights(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records whose model computed with its own weights."""
    return [record for record in records if has_own_weights(record)]


def pruned_lines(records: Iterable[dict[str, Any]]) -> list[str]:
    """How weights were pruned among some records, and what is counted of them; none without any."""
    found = {}
    for record in records:
        if (index := quantisation_of(record).get("index")) is not None:
            _, _, how = record["quantisation"]["description"].partition(" zeros by ")
            found[pruned_or_method(record)[1], how, index, record["model"]["dtype"]] = None
    return [
        f"`{name}`: weights pruned instead, by {how}. Every token reads the same, dense ones too: the kept "
        f"values in {dtype}, and {INDICES[index]} bit for each place that says whether it is kept."
        for name, how, index, dtype in found
    ]
