"""How much the model's predictions suffer where an input channel of a projection is dropped, from gradients.

Dropping channel i of a projection's input changes its output by −x_i·W[:, i]. With g the gradient of the
log-probability of a token drawn from the model's own prediction, the Kullback-Leibler divergence from the dense
model grows to second order by ½·E[(x_i·(Wᵀg)_i)²]: the diagonal of the Fisher information. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from .block_probe import block_keywords
from .calibration import Calibration
from .logits import tokens_at_once
from .projections import decoder_blocks, model_projections


def channel_sensitivities(calibration: Calibration, seed: int) -> dict[str, Tensor]:
    """E[(Wᵀg)_i²] of every projection's input channels, by key, (in,) float64; computed once.

    The mean is over the calibration tokens that are sparse while methods search; one label is drawn for each.
    """
    if seed not in calibration.sensitivities:
        calibration.sensitivities[seed] = _measured(calibration, seed)
    return calibration.sensitivities[seed]


def _measured(calibration: Calibration, seed: int) -> dict[str, Tensor]:
    model, device = calibration.model, calibration.device
    positions = calibration.search_positions(calibration.input_ids.to(device))
    generator = torch.Generator(device).manual_seed(seed)
    linears = model_projections(model)
    sums = {name: torch.zeros(linear.in_features, device=device).double() for name, linear in linears.items()}
    with torch.no_grad():
        keywords = block_keywords(model, calibration.input_ids[:1].to(device))
    handles = [
        linear.register_full_backward_hook(_recorder(sums[name], positions)) for name, linear in linears.items()
    ]
    tokens = 0
    try:
        batches = calibration.input_ids.split(calibration.batch_size)
        for batch in tqdm(batches, desc="sensitivity", unit="batch", leave=False):
            tokens += _backward(model, batch.to(device), keywords, positions, generator)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / tokens for name, total in sums.items()}


def _backward(
    model: PreTrainedModel,
    input_ids: Tensor,
    keywords: list[dict[str, Any]],
    positions: Tensor | None,
    generator: torch.Generator,
) -> int:
    """Send back the log-probability of one drawn label a counted token; returns how many were counted.

    Between the passes only what enters each block is kept, and a block is computed again on the way back: the
    activations of all blocks at once would take more memory than the model.
    """
    steps = list(zip(decoder_blocks(model), keywords, strict=True))
    hidden = model.get_input_embeddings()(input_ids)
    entering = []
    with torch.no_grad():
        for block, arguments in steps:
            entering.append(hidden)
            hidden = block(hidden, **arguments)
    counted = torch.ones_like(input_ids, dtype=torch.bool)
    if positions is not None:
        counted &= positions
    gradient = _gradient_of_labels(model, hidden, counted, generator)
    with torch.enable_grad():
        for block, arguments in reversed(steps):
            # Weights are frozen: the graph begins at what enters the block.
            entered = entering.pop().detach().requires_grad_()
            (gradient,) = torch.autograd.grad(block(entered, **arguments), entered, gradient)
    return int(counted.sum())


def _gradient_of_labels(
    model: PreTrainedModel, hidden: Tensor, counted: Tensor, generator: torch.Generator
) -> Tensor:
    """Gradient, at the last block's output, of the log-probabilities of labels drawn from the predictions."""
    gradients = []
    tokens, wanted, at_once = hidden.detach().flatten(0, 1), counted.flatten(), tokens_at_once(model)
    for first in range(0, len(tokens), at_once):
        with torch.enable_grad():
            part = tokens[first : first + at_once].requires_grad_()
            log_probabilities = model.lm_head(model.model.norm(part)).float().log_softmax(dim=-1)
            drawn = torch.multinomial(log_probabilities.detach().exp(), 1, generator=generator)
            chosen = log_probabilities.gather(1, drawn)[:, 0]
            gradients += torch.autograd.grad(chosen[wanted[first : first + at_once]].sum(), part)
    return torch.cat(gradients).view_as(hidden)


def _recorder(total: Tensor, positions: Tensor | None) -> Callable[..., None]:
    def record(_: nn.Linear, at_input: tuple[Tensor, ...], __: tuple[Tensor, ...]) -> None:
        squared = at_input[0].double().square()
        if positions is not None:
            squared = squared * positions[..., None]
        total.add_(squared.flatten(0, -2).sum(dim=0))

    return record
