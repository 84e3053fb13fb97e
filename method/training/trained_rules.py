"""Thresholds, biases and a basis as parameters: hooks that compute with them, gradients past a mask's step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..folding.turns import Turns
from ..plan import ProjectionRule

BAND = 0.35
"""Octaves: width of the logistic function whose slope stands for that of the step from dropped to kept."""
SMALLEST = 1e-12
"""Least threshold and activation whose logarithm is taken."""

Biases = Literal["output", "input"]
"""What is trained: a bias (out,) itself, or a vector (in,) that the weight makes one of (SPON)."""


class _Masked(torch.autograd.Function):
    """X (rows, length, in) with zeros where a sparse token is below its threshold.

    The gradient of the logarithmic threshold is taken as if the step were a logistic function, in it alone
    (a straight-through estimator). That of `density`, which changes nothing, is how many activations one octave
    more would drop.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, log2_thresholds: Tensor, density: Tensor, sparse: Tensor) -> Tensor:
        ctx.save_for_backward(x, log2_thresholds, sparse)
        return x * ((x.abs() >= log2_thresholds.exp2()) | ~sparse)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, log2_thresholds, sparse = ctx.saved_tensors
        distance = (x.abs().clamp_min(SMALLEST).log2() - log2_thresholds) / BAND
        at_input = gradient * ((distance >= 0) | ~sparse)
        if not ctx.needs_input_grad[1]:
            return at_input, None, None, None
        soft = distance.sigmoid()
        slope = soft * (1 - soft) / BAND * sparse
        of_threshold = -(gradient * x * slope).flatten(0, -2).sum(dim=0)
        return at_input, of_threshold, slope.flatten(0, -2).sum(dim=0), None


class TrainedBasis:
    """The basis of the residual stream that masks see it in, one for all projections that read it."""

    def __init__(self, hidden: int, device: torch.device) -> None:
        self.matrix = nn.Parameter(torch.eye(hidden, device=device))
        """(hidden, hidden), orthogonal."""
        self._turns = Turns(self.matrix.detach())

    @torch.no_grad()
    def turn(self, angle: float) -> None:
        """A step against the gradient of the matrix, which is then gone."""
        self.matrix.copy_(self._turns.turned(self.matrix, self.matrix.grad, angle))
        self.matrix.grad = None


class TrainedProjection:
    """Parameters of one projection; the basis that its input is masked in is shared with others."""

    def __init__(
        self,
        linear: nn.Linear,
        rule: ProjectionRule,
        biases: Biases,
        thresholds: bool,
        basis: TrainedBasis | None = None,
    ) -> None:
        weight = linear.weight
        size = weight.shape[0] if biases == "output" else weight.shape[1]
        self.linear = linear
        self.log2_thresholds = nn.Parameter(
            rule.thresholds.to(weight.device).clamp_min(SMALLEST).log2(), requires_grad=thresholds
        )
        self.vector = nn.Parameter(torch.zeros(size, device=weight.device))
        """The bias, or what the weight makes it of."""
        self.density = nn.Parameter(torch.zeros_like(self.log2_thresholds), requires_grad=thresholds)
        self.dropped: Tensor | int = 0
        """Channels dropped of all sparse tokens in passes with gradients."""
        self._biases, self._basis = biases, basis

    def bias(self) -> Tensor:
        """Added to the output of sparse tokens, (out,)."""
        if self._biases == "output":
            return self.vector
        return nn.functional.linear(self.vector.to(self.linear.weight.dtype), self.linear.weight)

    def rule(self) -> ProjectionRule:
        """What was trained, as a plan holds it."""
        thresholds = self.log2_thresholds.detach().exp2().float()
        return ProjectionRule(thresholds=thresholds, bias=self.bias().detach().float())

    def hooks(self, positions: Tensor) -> Iterator[RemovableHandle]:
        """Register what computes the tokens at `positions` (1, length) with these parameters."""
        sparse = positions[..., None]

        def mask(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            basis = None if self._basis is None else self._basis.matrix
            x = inputs[0] if basis is None else inputs[0] @ basis
            x = _Masked.apply(x, self.log2_thresholds, self.density, sparse)
            if torch.is_grad_enabled():
                self.dropped = self.dropped + ((x == 0) & sparse).sum()
            if basis is not None:  # dense tokens without what rounding adds
                x = torch.where(sparse, x @ basis.T, inputs[0])
            return (x, *inputs[1:])

        def add_bias(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + self.bias().to(output.dtype) * sparse

        yield self.linear.register_forward_pre_hook(mask)
        yield self.linear.register_forward_hook(add_bias)
