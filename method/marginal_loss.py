"""What one more dropped weight costs a model that is sparse already, measured by one backward pass.

Channels that are dropped together do not cost the sum of what each costs alone. At the sparse model the
divergence from the dense one has a gradient G at every projection's input; dropping channel i of one more token
changes the divergence by −x_i·G_i to first order, whatever else is dropped. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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


def marginal_losses(
    calibration: Calibration, thresholds: Mapping[str, Tensor], input_ids: Tensor
) -> dict[str, float]:
    """Nats of divergence for each weight dropped at the thresholds (in,) of each projection, by key.

    Measured on input_ids (sequences, length). The mean over the channels that lie close to their threshold,
    dropped or not: where it is below another projection's, weights are better dropped here. Negative where
    dropping more brings the predictions closer to the dense model's; 0 where no channel is close.
    """
    model, device = calibration.model, calibration.device
    positions = calibration.search_positions(input_ids.to(device))
    linears = model_projections(model)
    rules = {name: ProjectionRule(thresholds=found).to(device) for name, found in thresholds.items()}
    with torch.no_grad():
        keywords = block_keywords(model, input_ids[:1].to(device))
    sums = {name: torch.zeros(2, device=device, dtype=torch.float64) for name in linears}
    handles = []
    for name, linear in linears.items():
        before, after = _recorders(rules[name].thresholds, positions, sums[name])
        handles += [linear.register_forward_pre_hook(before), linear.register_full_backward_hook(after)]
    try:
        for batch in tqdm(input_ids.split(calibration.batch_size), desc="marginal loss", leave=False):
            loss = _divergence_loss(model, batch.to(device))
            with sparse_projections(linears, rules, positions):
                backward_through_blocks(model, batch.to(device), keywords, loss)
    finally:
        for handle in handles:
            handle.remove()
    saved = {name: out for name, (out, _) in calibration.shapes.items()}
    found = {name: total.tolist() for name, total in sums.items()}
    return {name: cost / (saved[name] * max(close, 1.0)) for name, (cost, close) in found.items()}


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
    thresholds: Tensor, positions: Tensor | None, total: Tensor
) -> tuple[Callable[..., None], Callable[..., None]]:
    """Hooks that add (Σ −x·G, number) over the channels near their thresholds to `total` (2,)."""
    inputs: list[Tensor] = []  # from the pre-hook, which sees what the sparse input is made from

    def before(_: nn.Linear, arguments: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            inputs.append(arguments[0].detach())

    def after(_: nn.Linear, at_input: tuple[Tensor, ...], __: tuple[Tensor, ...]) -> None:
        x = inputs.pop()
        near = (x.abs() >= thresholds / NEAR) & (x.abs() < thresholds * NEAR)
        if positions is not None:
            near &= positions[..., None]
        cost = -(x.double() * at_input[0].double() * near).sum()
        total.add_(torch.stack([cost, near.sum().double()]))

    return before, after
