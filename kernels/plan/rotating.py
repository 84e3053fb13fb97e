"""Rotated bases in a decoder's weights: what norms give is turned, and the weights behind them are, too.

With W̃ = W·diag(g)·Q for the gains g of the norm before it, (x/g)·Q·W̃ᵀ = x·Wᵀ: nothing changes but the channels
that masks see. Where norms keep their gains, masks see x·Q, and W̃ = W·Q.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import KernelError
from ..model.decoder import NORM_PATHS, SITES, Decoder, block_projections, key, split_key
from ..model.executable import check_norms
from ..model.turned_norms import turn_output
from .bases import Rotation, SiteBases
from .block_plan import BlockPlan
from .in_use import BasesInUse, Places, Store, exact

_IN_USE: BasesInUse[SiteBases] = BasesInUse("a plan in rotated bases")


def bases_of_sites(blocks: Iterable[BlockPlan]) -> SiteBases | None:
    """The rotations of a plan's blocks; None: all sites are in their own bases."""
    found = {
        key(index, site): rotation
        for index, block in enumerate(blocks)
        for site, rotation in block.rotations.items()
    }
    return SiteBases(found) if found else None


def rotated(model: nn.Module, bases: SiteBases | None, store: Store = exact) -> AbstractContextManager[None]:
    """Context in which the projections at some sites work in these bases, all in their own where None.

    The model computes the same function. Weights are rotated in float64. After the last context of the same
    bases they are as before, bit by bit. Raises KernelError for bases that do not fit the model, for weights
    that are not in memory or were changed meanwhile, and where another context relies on other bases.
    """
    return _IN_USE.relied_on(model, bases, partial(_rotate, store))


def _rotate(store: Store, decoder: Decoder, bases: SiteBases, places: Places) -> None:
    for name, rotation in bases.rotations.items():
        index, site = split_key(name)
        if site not in NORM_PATHS or index >= len(decoder.blocks):
            raise KernelError(f"{name} is no site behind a norm of this model")
        _rotate_site(store, decoder, index, site, rotation, places)


def _rotate_site(
    store: Store, decoder: Decoder, index: int, site: str, rotation: Rotation, places: Places
) -> None:
    block = decoder.blocks[index]
    norm, linears = block.get_submodule(NORM_PATHS[site]), block_projections(block)
    check_norms(decoder, [norm])
    gains = norm.weight.data
    if problem := rotation.misfit(len(gains)):
        raise KernelError(f"{key(index, site)}: {problem}")
    exactly, online = rotation.basis.to(gains.device).double(), rotation.basis.to(gains)
    taken_over = torch.ones_like(gains) if rotation.gains_kept else gains

    def turned(weight: Tensor) -> Tensor:
        return weight * taken_over.double() @ exactly

    changed = {name: store(key(index, name), linears[name], turned) for name in SITES[site]}
    for name, weight in changed.items():
        places.put(linears[name], "weight", weight)
    places.put(norm, "weight", torch.ones_like(gains) if not rotation.gains_kept else gains)
    places.callback(turn_output(norm, online.contiguous()).remove)
