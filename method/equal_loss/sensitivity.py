"""How much the model's predictions suffer where an input channel of a projection is dropped, from gradients.

Dropping channel i of a projection's input changes its output by −x_i·W[:, i]. With g the gradient of the
log-probability of a token drawn from the model's own prediction, the Kullback-Leibler divergence from the dense
model grows to second order by ½·E[(x_i·(Wᵀg)_i)²]: the diagonal of the Fisher information. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..calibration import Calibration
from ..errors import UserError
from ..hooks import hooked
from ..plan import ProjectionRule
from ..projections import model_projections
from ..running.half_attention import coarse_passes
from ..running.projection_hooks import sparse_projections
from ..search.block_probe import block_keywords
from .block_backward import LogitSlope, backward_through_blocks


def channel_sensitivities(calibration: Calibration, seed: int, sequences: int) -> dict[str, Tensor]:
    """E[(Wᵀg)_i²] of every projection's input channels, by key, (in,) float64; computed once.

    The mean is over the tokens, sparse while methods search, of so many sequences from all over the text; one
    label is drawn for each.
    """
    input_ids = calibration.input_ids[calibration.spread(sequences)]
    return known_sensitivities(
        calibration, seed, sequences, lambda: _measured(calibration, input_ids, seed, {})
    )


def known_sensitivities(
    calibration: Calibration, seed: int, sequences: int, find: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The same as `find` has them, unless they are known of these sequences already; computed once.

    For whoever has the gradients of a pass of its own, in which labels were drawn alike.
    """
    return calibration.remembered(("sensitivities", seed, calibration.spread(sequences).step), find)


def sensitivities_at(
    calibration: Calibration, thresholds: Mapping[str, Tensor], seed: int, sequences: int
) -> dict[str, Tensor]:
    """The same of the model that is sparse at these thresholds (in,) by key, by its own labels.

    Channels dropped behind a projection no longer pass on what it loses.
    """
    input_ids = calibration.input_ids[calibration.spread(sequences)]
    rules = {name: ProjectionRule(thresholds=found) for name, found in thresholds.items()}
    return _measured(calibration, input_ids, seed, rules)


def _measured(
    calibration: Calibration, input_ids: Tensor, seed: int, rules: Mapping[str, ProjectionRule]
) -> dict[str, Tensor]:
    model, device = calibration.model, calibration.device
    positions = calibration.search_positions(input_ids.to(device))
    generator = torch.Generator(device).manual_seed(seed)
    linears = model_projections(model)
    sums = {name: torch.zeros(linear.in_features, device=device).double() for name, linear in linears.items()}
    with torch.no_grad():
        keywords = block_keywords(model, input_ids[:1].to(device))
    tokens = 0
    recorders = (
        linear.register_full_backward_hook(_recorder(sums[name], positions)) for name, linear in linears.items()
    )
    with coarse_passes(model), hooked(recorders), sparse_projections(linears, rules, positions):
        batches = input_ids.split(calibration.rows_a_walk(len(input_ids)))
        for batch in tqdm(batches, desc="sensitivity", unit="batch", leave=False):
            counted = torch.ones_like(batch, dtype=torch.bool, device=device)
            if positions is not None:
                counted &= positions
            slope = label_slope(counted, generator)
            backward_through_blocks(model, batch.to(device), keywords, slope)
            tokens += batch.numel() if positions is None else len(batch) * int(positions.sum())
    broken = [name for name, total in sums.items() if not total.isfinite().all()]
    if broken:
        raise UserError(
            f"the gradients at {', '.join(broken[:3])}{' and more' if len(broken) > 3 else ''} are not finite; "
            "equal loss cannot weigh these channels, load the model in float32 (model.dtype)"
        )
    return {name: total / tokens for name, total in sums.items()}


def label_slope(counted: Tensor, generator: torch.Generator) -> LogitSlope:
    """Slope of the log-probability of a label drawn from each prediction, over counted (rows, length)."""

    def slope(logits: Tensor, which: slice) -> Tensor:
        probabilities = logits.softmax(dim=-1)
        # As torch.multinomial draws, which looks at its numbers from the host each time.
        noise = torch.empty_like(probabilities).exponential_(generator=generator)
        drawn = torch.div(probabilities, noise, out=noise).argmax(dim=-1, keepdim=True)
        found = probabilities.neg_().scatter_add_(1, drawn, torch.ones_like(probabilities[:, :1]))
        return found.mul_(counted.flatten()[which, None])

    return slope


def _recorder(total: Tensor, positions: Tensor | None) -> Callable[..., None]:
    def record(_: nn.Linear, at_input: tuple[Tensor, ...], __: tuple[Tensor, ...]) -> None:
        squared = at_input[0].double().square()
        if positions is not None:
            squared = squared.where(positions[..., None], 0.0)  # what is not counted may be infinite
        total.add_(squared.flatten(0, -2).sum(dim=0))

    return record
