"""LTE's routers while a model is trained with them (arXiv 2402.06126, sections 4.1 to 4.3).

Neurons are put into groups of alike rows of gate. A router, one linear layer a block, gives each group the
sigmoid of a logit. First the groups' outputs are multiplied with these, and model and routers learn together.
Then the routers stay as they are, groups above 0.5 are computed and the others not, and the model adapts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ...method.projections import GATE_ACTIVATION_PATH, PROJECTION_PATHS, decoder_blocks

ROUNDS = 10
"""Rounds of k-means; what is found after fewer hardly changes."""


@dataclass(frozen=True)
class RouterRecipe:
    """How routers are trained. Where the paper's text was not at hand, the value is ours."""

    efficiency: float
    """Factor of the mean σ²: a higher one leaves out more. The paper sets it by the sparsity wanted."""
    separability: float
    """Factor of the mean 1/((σ − ½)² + softening), which keeps σ away from the threshold. Ours."""
    softening: float = 0.05
    """The paper's text has none: without it no σ can cross the threshold, and the loss has no bound. Ours."""
    neurons: int = 32
    """Neurons of a group, the paper's."""
    hard_from: float = 0.6
    """Share of training after which routers are hard and stay as they are. Ours."""
    model_rate: float = 0.1
    """Share of its learning rate that the model has until then. A fast one makes up for low scores with larger
    weights, all scores fall to zero, and nothing is left once routers are hard. Ours."""

    def rate_of_model(self, progress: float) -> float:
        """Share of its learning rate that the model has after this share of training."""
        return self.model_rate if progress < self.hard_from else 1.0


def balanced_groups(rows: Tensor, groups: int) -> Tensor:
    """Order of rows (rows, channels) in which each of so many equal groups of alike ones is together.

    k-means, whose clusters take the nearest pairs first until they are full.
    """
    size = len(rows) // groups
    centres = rows[:: size or 1][:groups].clone()
    for _ in range(ROUNDS):
        distances = torch.cdist(rows, centres)
        place = torch.full((len(rows),), -1)
        left = [size] * groups
        for pair in distances.flatten().argsort().tolist():
            row, group = divmod(pair, groups)
            if place[row] < 0 and left[group]:
                place[row] = group
                left[group] -= 1
        centres = torch.stack([rows[place == group].mean(0) for group in range(groups)])
    return place.argsort(stable=True)


@torch.no_grad()
def group_neurons(block: nn.Module, size: int) -> int:
    """Put a block's neurons in an order in which groups of this size are alike; returns their number."""
    gate, up, down = (block.get_submodule(PROJECTION_PATHS[name]) for name in ("gate", "up", "down"))
    groups, rest = divmod(gate.out_features, size)
    if rest:
        raise ValueError(f"{gate.out_features} neurons are no groups of {size}")
    order = balanced_groups(gate.weight.detach().float().cpu(), groups).to(gate.weight.device)
    for linear in (gate, up):
        linear.weight.copy_(linear.weight[order])
    down.weight.copy_(down.weight[:, order])
    return groups


class TrainedRouters:
    """Routers of a model: their hooks, what they add to the loss, and when they become hard."""

    def __init__(self, model: PreTrainedModel, how: RouterRecipe) -> None:
        self._how, self._blocks, self.hard = how, decoder_blocks(model), False
        device, hidden = model.device, model.config.hidden_size
        counts = [group_neurons(block, how.neurons) for block in self._blocks]
        self.layers = nn.ModuleList(nn.Linear(hidden, groups, bias=False) for groups in counts).to(device)
        self._scores: list[Tensor] = []

    def handles(self) -> Iterator[RemovableHandle]:
        """Register what multiplies each block's activated gate with its groups' scores, soft or hard."""
        for block, router in zip(self._blocks, self.layers, strict=True):
            yield from self._on_block(block, router)

    def _on_block(self, block: nn.Module, router: nn.Linear) -> Iterator[RemovableHandle]:
        of_groups: list[Tensor] = []  # from gate's input to its activated output in the same pass

        def choose(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            scores = router(inputs[0]).float().sigmoid()
            if not self.hard:
                self._scores.append(scores)
            of_groups[:] = [(scores > 0.5).float() if self.hard else scores]

        def scale(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output * of_groups.pop().repeat_interleave(self._how.neurons, dim=-1).to(output.dtype)

        yield block.get_submodule(PROJECTION_PATHS["gate"]).register_forward_pre_hook(choose)
        yield block.get_submodule(GATE_ACTIVATION_PATH).register_forward_hook(scale)

    def advance(self, progress: float) -> None:
        """Make the routers hard, and leave them as they are, once this share of training is late enough."""
        if progress >= self._how.hard_from and not self.hard:
            self.hard = True
            self.layers.requires_grad_(False)

    def take_loss(self) -> Tensor | float:
        """What the passes since the last call add to the loss: nothing once routers are hard."""
        scores, self._scores = self._scores, []
        if self.hard:
            return 0.0
        every = torch.stack([one.flatten() for one in scores])
        apart = 1.0 / ((every - 0.5).square() + self._how.softening)
        return self._how.efficiency * every.square().mean() + self._how.separability * apart.mean()

    @torch.no_grad()
    def stored(self) -> dict[int, Tensor]:
        """Weights (groups, hidden) by block in bfloat16, to which the routers themselves are rounded, too."""
        for layer in self.layers:
            layer.weight.copy_(layer.weight.bfloat16())
        return {block: layer.weight.bfloat16() for block, layer in enumerate(self.layers)}
