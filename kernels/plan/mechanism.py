"""The ways to leave something unread that a plan can be made of."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum


class Mechanism(Enum):
    """Ways to leave weights unread; the value is what messages call them. A decode step says which it knows."""

    THRESHOLD = "static thresholds"
    TOP_K = "top-k for each token"
    BOUNDED = "thresholds within bounds on k"
    SHARED_TOP_K = "top-k shared by a batch"
    LOW_RANK = "low-rank paths"
    GATE = "thresholds on the gate"
    ROTATION = "rotated bases"
    SIGNS = "a predictor of zeros by signs"
    PROXY = "proxies that choose neurons"
    ROUTER = "routers that choose neurons"
    HEADS = "key-value groups chosen for each token"
    FOLDED = "folded bases"
    BIAS = "biases of sparse tokens"


OF_DROPPING = frozenset(
    {
        Mechanism.ROTATION,
        Mechanism.FOLDED,
        Mechanism.BIAS,
        Mechanism.PROXY,
        Mechanism.ROUTER,
        Mechanism.BOUNDED,
    }
)
"""Mechanisms that choose what is dropped, or help those that do: a plan that is to drop nothing has none."""


def in_words(mechanisms: Collection[Mechanism]) -> str:
    """What messages call them, in the order of their declaration."""
    return " and ".join(mechanism.value for mechanism in Mechanism if mechanism in mechanisms)
