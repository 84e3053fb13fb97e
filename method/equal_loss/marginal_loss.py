"""Cost of one more dropped weight to a model that is sparse already, measured by one backward pass.

Channels that are dropped together do not cost the sum of what each costs alone. At the sparse model the
divergence from the dense one has a gradient G at every projection's input; dropping channel i of one more token
changes the divergence by −x_i·G_i to first order, whatever else is dropped. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm
from transformers import PreTrainedModel

from ...kernels.triton.statistics.near_thresholds import near_costs
from ..calibration import Calibration
from ..hooks import hooked
from ..plan import ProjectionRule
from ..projections import decoder_of, model_projections
from ..running.half_attention import coarse_passes
from ..running.projection_hooks import sparse_projections
from ..search.block_probe import block_keywords
from .block_backward import LogitSlope, backward_through_blocks

NEAR = 2.0**0.5
"""Channels count that lie within this factor of their threshold, on either side: an octave in all."""
FEWEST_NEAR = 50
"""Activations near its threshold that a channel's own mean is taken from."""


@dataclass(frozen=True)
class MarginalLosses:
    """Costs of dropping more of each projection's input, as measured on some sequences.

    Projections lie side by side, those of fewer channels filled up with channels that are never near their
    thresholds.
    """

    cost: Tensor
    """(projections, sequences, channels) nats for each weight dropped, summed over the activations near their
    thresholds; float64."""
    near: Tensor
    """(projections, sequences, channels) number of those activations."""

    @cached_property
    def mean(self) -> Tensor:
        """Nats for each weight dropped, (projections,); 0 where no activation is near its threshold."""
        return self.cost.sum(dim=(1, 2)) / self.near.sum(dim=(1, 2)).clamp_min(1)

    @property
    def by_channel(self) -> Tensor:
        """Nats for each weight dropped, (projections, channels), drawn towards the projection's by their noise.

        Empirical Bayes: a channel's own mean counts by the spread between channels over spread and noise, and
        noise is what the sequences disagree by. One sequence tells none: all channels are then alike.
        """
        sequences, near, mean = self.near.shape[1], self.near.sum(dim=1), self.mean[:, None]
        if sequences == 1:
            return mean.expand_as(near)
        own = self.cost.sum(dim=1) / near.clamp_min(1)
        noise = (self.cost - own[:, None] * self.near).square().sum(dim=1) / near.clamp_min(1).square()
        noise *= sequences / (sequences - 1)
        known = near >= FEWEST_NEAR
        typical = noise.where(known, torch.nan).nanmedian(dim=1, keepdim=True).values.nan_to_num(0.0)
        precision = known / (noise + typical).clamp_min(torch.finfo(noise.dtype).tiny)
        weighted = precision * ((own - mean).square() - noise)
        spread = weighted.sum(dim=1, keepdim=True) / precision.sum(dim=1, keepdim=True)
        share = torch.where(known, spread.clamp_min(0) / (spread.clamp_min(0) + noise), 0.0).nan_to_num(0.0)
        return mean + share * (own - mean)


def marginal_losses(
    calibration: Calibration,
    thresholds: Mapping[str, Tensor],
    sensitivities: Mapping[str, Tensor],
    which: slice,
) -> MarginalLosses:
    """Costs of dropping more at the thresholds (in,) of each projection, by key.

    Measured on these sequences of the calibration text, over the activations close to their threshold, dropped
    or not. Where it is below another projection's, weights are better dropped here. Negative where dropping
    more brings the predictions closer to the dense model's. `sensitivities` (in,): the curvature by channel.
    """
    model, device = calibration.model, calibration.device
    input_ids, dense = calibration.input_ids[which].to(device), calibration.final_states[which]
    positions = calibration.search_positions(input_ids)
    linears = model_projections(model)
    rules = {name: ProjectionRule(thresholds=found).to(device) for name, found in thresholds.items()}
    with torch.no_grad():
        keywords = calibration.remembered("block keywords", lambda: block_keywords(model, input_ids[:1]))
    found: dict[str, list[Tensor]] = {name: [] for name in linears}

    def recorders() -> Iterator[RemovableHandle]:
        for name, linear in linears.items():
            before, after = _recorders(
                rules[name].thresholds, sensitivities[name].to(device), positions, found[name]
            )
            yield linear.register_forward_pre_hook(before)
            yield linear.register_full_backward_hook(after)

    with coarse_passes(model), hooked(recorders()):
        rows = calibration.rows_a_walk(len(input_ids))
        batches = zip(input_ids.split(rows), dense.split(rows), strict=True)
        for batch, states in tqdm(list(batches), desc="marginal loss", leave=False):
            with sparse_projections(linears, rules, positions):
                backward_through_blocks(model, batch, keywords, divergence_slope(model, states.flatten(0, 1)))
    by_projection = [torch.cat(found[name], dim=1).movedim(2, 0) for name in calibration.shapes]
    cost, near = pad_sequence(by_projection, batch_first=True).double().permute(2, 0, 3, 1)
    outs = torch.tensor([out for out, _ in calibration.shapes.values()], device=device)
    return MarginalLosses(cost / outs[:, None, None], near)


def divergence_slope(model: PreTrainedModel, dense: Tensor) -> LogitSlope:
    """Slope of KL(dense ‖ sparse) summed over tokens; `dense`: what its head reads (tokens, hidden)."""
    head = decoder_of(model).lm_head

    def slope(logits: Tensor, which: slice) -> Tensor:
        with torch.no_grad():
            expected = head(dense[which]).float().softmax(dim=-1)
        return logits.softmax(dim=-1).sub_(expected)

    return slope


def _recorders(
    thresholds: Tensor, curvature: Tensor, positions: Tensor | None, found: list[Tensor]
) -> tuple[Callable[..., None], Callable[..., None]]:
    """Hooks that append (2, rows, in) to `found`: cost and number of the activations near their thresholds.

    An activation is dropped whole, from x to 0. G is the slope at x where it is kept and at 0 where it is
    dropped, so that x·G is half the curvature times x² too much or too little.
    """
    inputs: list[Tensor] = []  # from the pre-hook, which sees what the sparse input is made from
    curvature = curvature.float()

    def before(_: nn.Linear, arguments: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            inputs.append(arguments[0].detach())

    def after(_: nn.Linear, at_input: tuple[Tensor, ...], __: tuple[Tensor, ...]) -> None:
        costs = near_costs if at_input[0].is_cuda else _near_costs
        found.append(costs(inputs.pop(), at_input[0], thresholds, curvature, positions, NEAR))

    return before, after


def _near_costs(
    x: Tensor, gradient: Tensor, thresholds: Tensor, curvature: Tensor, positions: Tensor | None, factor: float
) -> Tensor:
    """What `near_costs` finds, by torch."""
    magnitudes = x.abs()
    near = (magnitudes >= thresholds / factor) & (magnitudes < thresholds * factor)
    if positions is not None:
        near &= positions[..., None]
    x, half = x.float(), 0.5 * curvature
    slope = torch.where(magnitudes >= thresholds, half, -half) * x - gradient
    cost = (slope * x).where(near, 0.0).sum(dim=1)
    return torch.stack([cost, near.sum(dim=1, dtype=cost.dtype)])
