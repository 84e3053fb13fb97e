"""Equal local error: thresholds on |x| with which the own outputs of all projections are equally wrong.

The rule of CETT (arXiv 2411.02335), one relative error for all layers' outputs, and of SATS (arXiv 2607.08991).
Both have it for the feed-forward part, and here it is every projection's. What it knows of a projection is its
own error alone, not what that does to the predictions: the control of methods that go by the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from ..kernels.reference import kept_by_threshold
from ..method.base import Method
from ..method.calibration import Calibration
from ..method.hooks import hooked
from ..method.plan import SparsityPlan
from ..method.projections import decoder_of, model_projections
from ..method.provenance import SearchCost
from ..method.rules import RuleBuilder, StaticThreshold
from ..method.search.budget import QUICK

HALVINGS = 50
"""How often the interval that the error lies in is halved."""


@dataclass(frozen=True)
class EqualError(Method):
    """One threshold on |x| for each projection, all at the same mean of ‖W(x − x̂)‖ / ‖Wx‖ over the tokens."""

    name: str = "equal_error"
    levels: int = 20
    """Sparsities that a projection's error is measured at; between them it is taken as linear."""
    block_tokens: int = QUICK.block_tokens
    """Calibration tokens that errors are measured on."""

    def _plan(self, calibration: Calibration, sparsity: float, cost: SearchCost) -> SparsityPlan:
        builder = RuleBuilder(calibration, StaticThreshold(), dict.fromkeys(calibration.shapes, 0.0))
        levels = torch.linspace(0.0, 1.0, self.levels + 1).double()
        with cost.stage("error curves"):
            curves = _error_curves(calibration, builder, levels, self.block_tokens)
            cost.count("error curves", len(curves) * self.levels)
        with cost.stage("thresholds"):
            sizes = {name: prod(shape) for name, shape in calibration.shapes.items()}
            error, sparsities = at_equal_error(levels.tolist(), curves, sizes, sparsity)
            return builder.plan(sparsities, error=error)


def at_equal_error(
    levels: list[float], curves: Mapping[str, list[float]], sizes: Mapping[str, int], sparsity: float
) -> tuple[float, dict[str, float]]:
    """The one error, and the sparsities by key, whose mean, weighted by the sizes, is the one wanted.

    curves: errors at the levels, by key, 0 at the first.
    """
    total, rising = sum(sizes.values()), {name: np.maximum.accumulate(found) for name, found in curves.items()}

    def at(error: float) -> dict[str, float]:
        return {name: float(np.interp(error, found, levels)) for name, found in rising.items()}

    low, high = 0.0, max(float(found[-1]) for found in rising.values())
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        reached = sum(sizes[name] * share for name, share in at(middle).items()) / total
        low, high = (middle, high) if reached < sparsity else (low, middle)
    return high, at(high)


@torch.inference_mode()
def _error_curves(
    calibration: Calibration, builder: RuleBuilder, levels: Tensor, tokens: int
) -> dict[str, list[float]]:
    """Mean relative error of every projection's output at each level, on dense inputs."""
    input_ids = calibration.search_tokens(tokens)
    positions = calibration.search_positions(input_ids)
    found: dict[str, list[float]] = {}

    def measure(name: str) -> Callable[..., None]:
        def measured(linear: nn.Linear, inputs: tuple[Tensor, ...], _: Tensor) -> None:
            x = inputs[0] if positions is None else inputs[0][:, positions[0]]
            x, rules = x.flatten(0, 1), builder.candidates(name, levels)
            dense = nn.functional.linear(x, linear.weight).float().norm(dim=-1)
            errors = []
            for thresholds in rules.thresholds[:, 0]:
                lost = x - x * kept_by_threshold(x, thresholds)
                wrong = nn.functional.linear(lost, linear.weight).float().norm(dim=-1)
                errors.append((wrong / dense.clamp_min(torch.finfo(torch.float32).tiny)).mean())
            found[name] = torch.stack(errors).tolist()

        return measured

    linears = model_projections(calibration.model)
    with hooked(linear.register_forward_hook(measure(name)) for name, linear in linears.items()):
        decoder_of(calibration.model).inner(input_ids=input_ids, use_cache=False)
    return found
