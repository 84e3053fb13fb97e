"""Recipes that train an embedded model on until its feed-forward parts are sparse; all see the same tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..embedded.recipes import RECIPES, Recipe
from .routers import RouterRecipe

START = "llama-mini"
"""The embedded model that all of them start from."""


@dataclass(frozen=True)
class Continuation:
    """What is changed of the model, and what is added to its loss while it is trained on."""

    title: str
    activation: str = "silu"
    """`hidden_act` of config.json."""
    stages: tuple[tuple[float, float], ...] = ()
    """(end as a share of training, factor) of the L1 penalty on down's inputs. The first stage has its factor
    from the start; in each later one the factor rises from the one before along half a period of a sine."""
    kept: float | None = None
    """Share of every projection's input channels that is kept at each token; gradients pass as if all were."""
    neighbours: int | None = None
    """Channels beside each other of which that share is kept each time; None: all."""
    routers: RouterRecipe | None = None
    """Routers that are trained with the model and choose its neurons."""

    def factor(self, progress: float) -> float:
        """Factor of the penalty after this share of training."""
        before, begin = None, 0.0
        for end, factor in self.stages:
            if progress < end:
                if before is None:
                    return factor
                phase = (progress - begin) / (end - begin)
                return before + (factor - before) * (math.sin(math.pi * (phase - 0.5)) + 1.0) / 2.0
            before, begin = factor, end
        return before or 0.0


CONTINUATIONS = {
    "dense": Continuation("The dense control: nothing is changed."),
    "relu": Continuation("ReLU in place of SiLU, nothing else.", activation="relu"),
    "prosparse": Continuation(
        "ProSparse (arXiv 2402.13516): ReLU, and an L1 penalty on what enters down that rises in stages.",
        activation="relu",
        # The paper tunes factors by model. These are for mean |x| of all channels of a block, and are ours.
        stages=((0.1, 0.05), (0.4, 0.3), (0.75, 0.8), (1.0, 0.8)),
    ),
    "prosparse_strong": Continuation(
        "ProSparse with four times the penalty.",
        activation="relu",
        stages=((0.1, 0.2), (0.4, 1.2), (0.75, 3.2), (1.0, 3.2)),
    ),
    "qsparse": Continuation(
        "Q-Sparse (arXiv 2407.10969): squared ReLU, and top-k of every projection's input, straight through.",
        activation="relu2",
        kept=0.5,
    ),
    "qsparse_block": Continuation(
        "Q-Sparse for batches: the top half of every 32 neighbouring channels.",
        activation="relu2",
        kept=0.5,
        neighbours=32,  # ours: the paper's number was not readable
    ),
    "lte": Continuation(
        "LTE (arXiv 2402.06126): SiLU, and routers that learn to leave out groups of neurons.",
        routers=RouterRecipe(efficiency=1.0, separability=0.01),
    ),
    "lte_strong": Continuation(
        "LTE with twice the weight of efficiency.",
        routers=RouterRecipe(efficiency=2.0, separability=0.01),
    ),
    "lte_mild": Continuation(
        "LTE with half the weight of efficiency.",
        routers=RouterRecipe(efficiency=0.5, separability=0.01),
    ),
}
"""Continuations by name, the control first."""


def recipe(tokens: int) -> Recipe:
    """How all of them are trained: as the model itself was, at a quarter of its learning rate."""
    own = RECIPES[START]
    return Recipe(
        own.architecture, own.optimizer, tokens, own.learning_rate / 4, own.batch, warmup_steps=100, seed=1
    )
