"""What one more dropped weight costs a model that is sparse already, measured by one backward pass.

Channels that are dropped together do not cost the sum of what each costs alone. At the sparse model the
divergence from the dense one has a gradient G at every projection's input; dropping channel i of one more token
changes the divergence by −x_i·G_i to first order, whatever else is dropped. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from .apply import sparse_projections
from .block_backward import LogitLoss, backward_through_blocks
from .block_probe import block_keywords
from .calibration import Calibration
from .plan import ProjectionRule
from .projections import model_projections

NEAR = 2.0**0.5
"""Channels count that lie within this factor of their threshold, on either side: an octave in all."""
FEWEST_NEAR = 50
"""Activations near its threshold that a channel's own mean is taken from."""


@dataclass(frozen=True)
class MarginalLoss:
    """What dropping more of one projection's input costs, as measured on some sequences."""

    cost: Tensor
    """(sequences, in) nats for each weight dropped, summed over the activations near their thresholds."""
    near: Tensor
    """(sequences, in) number of those activations."""

    @property
    def mean(self) -> float:
        """Nats for each weight dropped; 0 where no activation is near its threshold."""
        return float(self.cost.sum() / self.near.sum().clamp_min(1))

    @property
    def by_channel(self) -> Tensor:
        """Nats for each weight dropped of every channel, (in,), drawn towards the projection's by their noise.

        Empirical Bayes: a channel's own mean counts by the spread between channels over spread and noise, and
        noise is what the sequences disagree by. One sequence tells none: all channels are then alike.
        """
        sequences, near, mean = len(self.near), self.near.sum(dim=0), self.mean
        if sequences == 1:
            return torch.full_like(near, mean)
        own = self.cost.sum(dim=0) / near.clamp_min(1)
        noise = (self.cost - own * self.near).square().sum(dim=0) / near.clamp_min(1).square()
        noise *= sequences / (sequences - 1)
        known = near >= FEWEST_NEAR
        if not known.any():
            return torch.full_like(near, mean)
        precision = known / (noise + noise[known].median()).clamp_min(torch.finfo(noise.dtype).tiny)
        spread = (precision * ((own - mean).square() - noise)).sum() / precision.sum()
        share = torch.where(known, spread.clamp_min(0) / (spread.clamp_min(0) + noise), 0.0).nan_to_num(0.0)
        return mean + share * (own - mean)


def marginal_losses(
    calibration: Calibration,
    thresholds: Mapping[str, Tensor],
    sensitivities: Mapping[str, Tensor],
    input_ids: Tensor,
) -> dict[str, MarginalLoss]:
    """What dropping more costs at the thresholds (in,) of each projection, by key; float64.

    Measured on input_ids (sequences, length), over the activations that lie close to their threshold, dropped
    or not. Where it is below another projection's, weights are better dropped here. Negative where dropping
    more brings the predictions closer to the dense model's. `sensitivities` (in,): the curvature by channel.
    """
    model, device = calibration.model, calibration.device
    positions = calibration.search_positions(input_ids.to(device))
    linears = model_projections(model)
    rules = {name: ProjectionRule(thresholds=found).to(device) for name, found in thresholds.items()}
    with torch.no_grad():
        keywords = block_keywords(model, input_ids[:1].to(device))
    found: dict[str, list[Tensor]] = {name: [] for name in linears}
    handles = []
    for name, linear in linears.items():
        before, after = _recorders(
            rules[name].thresholds, sensitivities[name].to(device), positions, found[name]
        )
        handles += [linear.register_forward_pre_hook(before), linear.register_full_backward_hook(after)]
    try:
        for batch in tqdm(input_ids.split(calibration.batch_size), desc="marginal loss", leave=False):
            loss = _divergence_loss(model, batch.to(device))
            with sparse_projections(linears, rules, positions):
                backward_through_blocks(model, batch.to(device), keywords, loss)
    finally:
        for handle in handles:
            handle.remove()
    losses = {}
    for name, (out, _) in calibration.shapes.items():
        cost, near = torch.cat(found[name], dim=1)
        losses[name] = MarginalLoss(cost / out, near)
    return losses


def _divergence_loss(model: PreTrainedModel, input_ids: Tensor) -> LogitLoss:
    """KL(dense ‖ sparse) summed over tokens; of the dense model the final states are kept, not the logits."""
    with torch.no_grad():
        dense = model.model(input_ids=input_ids, use_cache=False).last_hidden_state.flatten(0, 1)

    def loss(logits: Tensor, which: slice) -> Tensor:
        with torch.no_grad():
            expected = model.lm_head(dense[which]).float().log_softmax(dim=-1)
        return nn.functional.kl_div(logits.log_softmax(dim=-1), expected, reduction="sum", log_target=True)

    return loss


def _recorders(
    thresholds: Tensor, curvature: Tensor, positions: Tensor | None, found: list[Tensor]
) -> tuple[Callable[..., None], Callable[..., None]]:
    """Hooks that append (2, rows, in) to `found`: cost and number of the activations near their thresholds.

    An activation is dropped whole, from x to 0. G is the slope at x where it is kept and at 0 where it is
    dropped, so that x·G is half the curvature times x² too much or too little.
    """
    inputs: list[Tensor] = []  # from the pre-hook, which sees what the sparse input is made from
    half_curvature = 0.5 * curvature.float()

    def before(_: nn.Linear, arguments: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            inputs.append(arguments[0].detach())

    def after(_: nn.Linear, at_input: tuple[Tensor, ...], __: tuple[Tensor, ...]) -> None:
        x = inputs.pop()
        magnitudes = x.abs()
        near = (magnitudes >= thresholds / NEAR) & (magnitudes < thresholds * NEAR)
        if positions is not None:
            near &= positions[..., None]
        second = torch.where(magnitudes >= thresholds, half_curvature, -half_curvature) * x.float().square()
        cost = (second - x.float() * at_input[0].float()) * near
        found.append(torch.stack([cost.sum(dim=1).double(), near.sum(dim=1).double()]))

    return before, after
