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
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from ...kernels.triton.statistics.turned import column_dots, columns_weighted, relative_slopes
from ..running.precision import coarse_products
from ..settings import Settings
from .repeated import Repeated
from .turns import Turns

PRICED_EVERY = 25
"""Steps after which τ is the quantile of the basis reached."""
DRAWN_FOR_PRICE = 400_000
"""Activations that the quantile is taken of."""


@dataclass(frozen=True)
class BasisSettings(Settings):
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
    """The Lagrangian of a basis, in units of τ, and its slope."""

    def __init__(self, sample: BasisSample, settings: BasisSettings) -> None:
        device = sample.inputs.device
        self._sample, self._settings = sample, settings
        self._sites, self._outs = sample.sites.to(device), sample.outs.to(device).float()[:, None, None]
        groups = sample.fishers.shape[:-3].numel()
        self._outs_of_all = self._outs.flatten().repeat(groups)
        self._readers = _readers(sample.sites, groups).to(device)
        self._generator = torch.Generator(device).manual_seed(settings.seed)

    def room_for_drawn(self) -> Tensor:
        """Where the activations of a step have room, (..., sites, tokens of a step, channels)."""
        inputs = self._sample.inputs
        return inputs.new_empty(*inputs.shape[:-2], self._settings.tokens_a_step, inputs.shape[-1])

    def draw(self, drawn: Tensor) -> None:
        """Draw the activations of a step."""
        tokens = self._chosen(self._sample.inputs.shape[-2], self._settings.tokens_a_step)
        torch.index_select(self._sample.inputs, -2, tokens, out=drawn)

    def _chosen(self, choices: int, count: int) -> Tensor:
        return torch.randint(choices, (count,), device=self._outs.device, generator=self._generator)

    def losses(self, basis: Tensor, inputs: Tensor) -> Tensor:
        """Expected loss of each weight, x²·h/out: (..., projections, tokens, channels)."""
        basis = basis.unsqueeze(-3)
        curvature = ((self._sample.fishers @ basis) * basis).sum(dim=-2, keepdim=True)
        return (inputs @ basis).square()[..., self._sites, :, :] * (curvature / self._outs)

    def price(self, losses: Tensor) -> Tensor:
        """The τ below which the wanted share of the weights lies.

        Where that much costs nothing it is the least loss above 0, and infinite where there is none: losses are
        measured in it.
        """
        which = self._chosen(losses.numel(), DRAWN_FOR_PRICE)
        found, order = losses.flatten()[which].sort()
        weights = self._outs.expand_as(losses).flatten()[which][order].cumsum(dim=0)
        wanted = found.take((weights < self._settings.dropped * weights[-1]).sum())
        return torch.where(wanted > 0.0, wanted, found.where(found > 0.0, torch.inf).min())

    def __call__(self, losses: Tensor, price: Tensor) -> Tensor:
        """Mean of u/(1+u) for u = loss/τ, weighted by the weights."""
        relative = losses / price
        return (relative / (1.0 + relative) * self._outs).mean()

    def slope(self, basis: Tensor, inputs: Tensor, price: Tensor) -> Tensor:
        """Gradient (..., channels, channels) of the mean by the basis, at these activations.

        u is y²·c with y = x·Q and c = h/(out·τ), so that it is Σ xᵀ·∂y over sites + 2·Σ F·Q·∂c/(out·τ) over
        projections: written out, it is a fifth of the passes over memory that automatic gradients take, and one
        product with the Fisher matrices for two. They are symmetric.
        """
        of_all = basis.unsqueeze(-3)
        turned, fishers = inputs @ of_all, self._sample.fishers @ of_all
        scale = self._outs * price
        curvatures = _column_dots(fishers, of_all) / scale
        slopes = relative_slopes if turned.is_cuda else _relative_slopes
        by_turned, by_curvature = slopes(
            turned.flatten(0, -3), curvatures.flatten(0, -2), self._outs_of_all, self._readers
        )
        through_inputs = inputs.flatten(-3, -2).mT @ by_turned.view_as(turned).flatten(-3, -2)
        through_fishers = _columns_weighted(fishers, by_curvature.view_as(curvatures) / scale)
        weights = curvatures.numel() * inputs.shape[-2]
        return (2.0 / weights) * (through_inputs + through_fishers)


def _column_dots(matrices: Tensor, basis: Tensor) -> Tensor:
    """Σ_i M_ij·Q_ij, (..., projections, 1, channels), of M (..., projections, channels, channels)."""
    if not matrices.is_cuda:
        return (matrices * basis).sum(dim=-2, keepdim=True)
    size = matrices.shape[-1]
    found = column_dots(matrices.view(-1, *matrices.shape[-3:]), basis.reshape(-1, size, size))
    return found.view(*matrices.shape[:-2], 1, size)


def _columns_weighted(matrices: Tensor, weights: Tensor) -> Tensor:
    """Σ_p M_pij·w_pj of M (..., projections, channels, channels) and w (..., projections, 1, channels)."""
    if not matrices.is_cuda:
        return matrices.mul_(weights).sum(dim=-3)
    shape = matrices.shape
    found = columns_weighted(matrices.view(-1, *shape[-3:]), weights.reshape(-1, shape[-3], shape[-1]))
    return found.view(*shape[:-3], *shape[-2:])


def _relative_slopes(
    turned: Tensor, curvatures: Tensor, outs: Tensor, readers: Tensor
) -> tuple[Tensor, Tensor]:
    """What `relative_slopes` finds, by torch."""
    squares = turned.square()
    by_square, by_curvature = torch.zeros_like(squares), torch.empty_like(curvatures)
    for of_sites in readers.long().unbind(dim=1):
        sites = (of_sites >= 0).nonzero()[:, 0]
        which = of_sites[sites]
        of_site, of_reader = squares[sites], curvatures[which][:, None]
        slopes = (of_site * of_reader).add_(1.0).reciprocal_().square_().mul_(outs[which, None, None])
        by_square[sites] += slopes * of_reader
        by_curvature[which] = slopes.mul_(of_site).sum(dim=1)
    return by_square.mul_(turned), by_curvature


def _readers(sites: Tensor, groups: int) -> Tensor:
    """Projections that read each site of all groups, (sites, most) int32; -1 where there are fewer."""
    of_site: dict[int, list[int]] = {}
    for projection in range(groups * len(sites)):
        group, place = divmod(projection, len(sites))
        of_site.setdefault(int(sites[place]) + group * (int(sites.max()) + 1), []).append(projection)
    found = [torch.tensor(of_site[site], dtype=torch.int32) for site in range(len(of_site))]
    return pad_sequence(found, batch_first=True, padding_value=-1)


@coarse_products()
def fitted_basis(sample: BasisSample, settings: BasisSettings, steps: int) -> Tensor:
    """Orthogonal (..., channels, channels) float32, reached from the sample's own basis by so many turns.

    All groups have one τ.
    """
    cost = _Cost(sample, settings)
    channels = sample.inputs.shape[-1]
    basis = torch.eye(channels, device=sample.inputs.device).repeat(*sample.inputs.shape[:-3], 1, 1)
    turns, inputs = Turns(basis), cost.room_for_drawn()
    price, angle = inputs.new_empty(()), torch.zeros((), dtype=torch.float64, device=basis.device)

    def turn() -> None:
        basis.copy_(turns.turned(basis, cost.slope(basis, inputs, price), angle))

    step_once = Repeated(turn, basis.device)
    with torch.no_grad():
        for step in tqdm(range(steps), desc="basis", unit="step", leave=False):
            cost.draw(inputs)
            if step % PRICED_EVERY == 0:
                price.copy_(cost.price(cost.losses(basis, inputs)))
            angle.fill_(0.5 * settings.rate * (1.0 + math.cos(math.pi * step / steps)))
            step_once()
    return basis
