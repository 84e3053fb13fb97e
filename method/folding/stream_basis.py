"""An orthogonal basis fitted on what projections read: of the residual stream, one for those of all blocks.

Equal loss keeps a channel where x²·h/out is at least τ and drops it else. With y = x·Q and h the diagonal of
Qᵀ·F·Q, for the Fisher matrix F of a projection's input, its Lagrangian is Σ out·min(y²·h/out, τ) over tokens,
projections and channels: what is dropped costs its loss, what is kept its price. Q makes that least. So that
there is a slope everywhere, min(u, 1) is taken as u/(1+u). No gradient passes through the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from ..running.precision import coarse_products
from .turns import Turns

PRICED_EVERY = 25
"""Steps after which τ is the quantile of the basis reached."""
DRAWN_FOR_PRICE = 400_000
"""Activations that the quantile is taken of."""


@dataclass(frozen=True)
class BasisSettings:
    """How the basis is fitted."""

    steps: int = 800
    tokens: int = 8192
    """Tokens that are kept of each site."""
    tokens_a_step: int = 512
    dropped: float = 0.55
    """Share of the weights that τ drops."""
    rate: float = 0.003
    """Typical angle, in radians, by which a step turns one channel towards another."""
    value_steps: int = 0
    """Steps in which the bases of values are fitted likewise, from their principal axes; 0: they are these."""
    seed: int = 0


@dataclass(frozen=True)
class BasisSample:
    """What projections read of channels that a basis is to be found for, or of several groups of such channels.

    Of the residual stream there is one group, in its own basis; of values a group for each head of v, and its
    sites and projections are the heads of o's input that share it.
    """

    inputs: Tensor
    """(..., sites, tokens, channels): activations, those of the stream without the gains of the norm."""
    sites: Tensor
    """(projections,) site of each projection."""
    fishers: Tensor
    """(..., projections, channels, channels): E[g gᵀ] of the gradient g at the inputs."""
    outs: Tensor
    """(projections,) weights that a channel of the projection has."""

    def turned(self, basis: Tensor) -> BasisSample:
        """The same in other bases (..., channels, channels)."""
        of_all = basis.unsqueeze(-3)
        return replace(self, inputs=self.inputs @ of_all, fishers=of_all.mT @ self.fishers @ of_all)


class _Cost:
    """The Lagrangian of a basis, in units of τ."""

    def __init__(self, sample: BasisSample, settings: BasisSettings) -> None:
        device = sample.inputs.device
        self._sample, self._settings = sample, settings
        self._sites, self._outs = sample.sites.to(device), sample.outs.to(device).float()[:, None, None]
        self._generator = torch.Generator(device).manual_seed(settings.seed)

    def drawn(self) -> Tensor:
        """Activations (..., sites, tokens of a step, channels)."""
        inputs, count = self._sample.inputs, self._settings.tokens_a_step
        return inputs[..., self._draw(inputs.shape[-2], count), :]

    def _draw(self, choices: int, count: int) -> Tensor:
        return torch.randint(choices, (count,), device=self._outs.device, generator=self._generator)

    def losses(self, basis: Tensor, inputs: Tensor) -> Tensor:
        """Expected loss of each weight, x²·h/out: (..., projections, tokens, channels)."""
        basis = basis.unsqueeze(-3)
        curvature = ((self._sample.fishers @ basis) * basis).sum(dim=-2, keepdim=True)
        return (inputs @ basis).square()[..., self._sites, :, :] * (curvature / self._outs)

    def price(self, losses: Tensor) -> Tensor:
        """The τ below which the wanted share of the weights lies."""
        which = self._draw(losses.numel(), DRAWN_FOR_PRICE)
        found, order = losses.flatten()[which].sort()
        weights = self._outs.expand_as(losses).flatten()[which][order].cumsum(dim=0)
        return found[int((weights < self._settings.dropped * weights[-1]).sum())]

    def __call__(self, losses: Tensor, price: Tensor) -> Tensor:
        """Mean of u/(1+u) for u = loss/τ, weighted by the weights."""
        relative = losses / price
        return (relative / (1.0 + relative) * self._outs).mean()


@coarse_products()
def fitted_basis(sample: BasisSample, settings: BasisSettings, steps: int) -> Tensor:
    """Orthogonal (..., channels, channels) float32, reached from the sample's own basis by so many turns.

    All groups have one τ.
    """
    cost = _Cost(sample, settings)
    channels = sample.inputs.shape[-1]
    basis = torch.eye(channels, device=sample.inputs.device).repeat(*sample.inputs.shape[:-3], 1, 1)
    turns = Turns(basis)
    for step in tqdm(range(steps), desc="basis", unit="step", leave=False):
        inputs = cost.drawn()
        with torch.no_grad():
            if step % PRICED_EVERY == 0:
                price = cost.price(cost.losses(basis, inputs))
        leaf = basis.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(cost(cost.losses(leaf, inputs), price), leaf)
        share = 0.5 * (1.0 + math.cos(math.pi * step / steps))
        basis = turns.turned(basis, slope, settings.rate * share)
    return basis.contiguous()
