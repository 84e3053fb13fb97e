"""How much the model's predictions suffer where an input channel of a projection is dropped, from gradients.

Dropping channel i of a projection's input changes its output by −x_i·W[:, i]. With g the gradient of the
log-probability of a token drawn from the model's own prediction, the Kullback-Leibler divergence from the dense
model grows to second order by ½·E[(x_i·(Wᵀg)_i)²]: the diagonal of the Fisher information. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .calibration import Calibration
from .projections import model_projections


def channel_sensitivities(calibration: Calibration, seed: int) -> dict[str, Tensor]:
    """E[(Wᵀg)_i²] of every projection's input channels, by key, (in,) float64; computed once.

    The mean is over the calibration tokens that are sparse while methods search; one label is drawn for each.
    """
    if seed not in calibration.sensitivities:
        calibration.sensitivities[seed] = _measured(calibration, seed)
    return calibration.sensitivities[seed]


@torch.enable_grad()
def _measured(calibration: Calibration, seed: int) -> dict[str, Tensor]:
    model, device = calibration.model, calibration.device
    positions = calibration.search_positions(calibration.input_ids.to(device))
    generator = torch.Generator(device).manual_seed(seed)
    linears = model_projections(model)
    sums = {name: torch.zeros(linear.in_features, device=device).double() for name, linear in linears.items()}
    handles = [
        linear.register_full_backward_hook(_recorder(sums[name], positions)) for name, linear in linears.items()
    ]
    tokens = 0
    try:
        batches = calibration.input_ids.split(calibration.batch_size)
        for batch in tqdm(batches, desc="sensitivity", unit="batch", leave=False):
            tokens += _backward(model, batch.to(device), positions, generator)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / tokens for name, total in sums.items()}


def _backward(model: nn.Module, input_ids: Tensor, positions: Tensor | None, generator: torch.Generator) -> int:
    """Send back the log-probability of one drawn label a counted token; returns how many were counted."""
    # Weights are frozen: the embeddings are where the graph begins.
    embeddings = model.get_input_embeddings()(input_ids).detach().requires_grad_()
    logits = model(inputs_embeds=embeddings, use_cache=False).logits.float()
    log_probabilities = logits.log_softmax(dim=-1)
    drawn = torch.multinomial(log_probabilities.detach().exp().flatten(0, 1), 1, generator=generator)
    chosen = log_probabilities.flatten(0, 1).gather(1, drawn).view(input_ids.shape)
    counted = torch.ones_like(input_ids, dtype=torch.bool)
    if positions is not None:
        counted &= positions
    chosen[counted].sum().backward()
    return int(counted.sum())


def _recorder(total: Tensor, positions: Tensor | None) -> Callable[..., None]:
    def record(linear: nn.Linear, _: object, output_gradients: tuple[Tensor, ...]) -> None:
        at_input = torch.nn.functional.linear(output_gradients[0], linear.weight.T)
        squared = at_input.double().square()
        if positions is not None:
            squared = squared * positions[..., None]
        total.add_(squared.flatten(0, -2).sum(dim=0))

    return record
