"""A whole plan as runtimes read it, and the model that it is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ..weight_samples import Samples, first_difference
from .bases import FoldedBases
from .block_plan import BlockPlan


class Plan(Protocol):
    """Interface of a whole plan."""

    shapes: dict[str, tuple[int, int]]
    """(out, in) of every block projection of the model that it was made for, by key."""
    quantisation: str | None
    """Quantised weights that it was made on; None: the model's own."""
    weight_samples: Samples | None
    """Samples of the weights that it was made of; None: nobody knows them, or it is of none."""
    folded: FoldedBases | None
    """Bases in the weights that its rules are on; None: the model's own."""

    def block_plans(self) -> tuple[BlockPlan, ...]:
        """The plan of every block, in order."""
        ...

    def expected_sparsity(self, name: str) -> float | None:
        """Share of its channels that a token is expected to drop in this projection; None: nobody knows."""
        ...


def of_another_model(shapes: Mapping[str, tuple[int, int]], model: Mapping[str, tuple[int, int]]) -> str | None:
    """What tells a plan's projections (out, in) from a model's, for messages; None where they are the same."""
    if dict(shapes) == dict(model):
        return None
    first, of_model = (next(iter(sizes.items()), None) for sizes in (shapes, model))
    return (
        f"this plan is for another model: it has {len(shapes)} projections, first {first}; "
        f"the model has {len(model)}, first {of_model}"
    )


def of_other_weights(what: str, made_of: Samples | None, there: Samples) -> str | None:
    """What tells the weights that something was made of from a model's, for messages; None where they agree."""
    if made_of is None or (name := first_difference(made_of, there)) is None:
        return None
    return (
        f"{what} is of another model, or of this one before it was changed: {name} is not what it "
        "was made of; take the model that it was made of, or make it anew on this one"
    )
