"""Rotated bases: projections that read normalized hidden states read them times an orthogonal matrix.

With W̃ = W·diag(g)·Q for the gains g of the norm before it, (x/g)·Q·W̃ᵀ = x·Wᵀ: nothing changes but the
channels that masks see. La RoSA's code keeps the gains in the norm: masks see x·Q, and W̃ = W·Q. WINA's code
rotates the residual stream instead (SliceGPT's invariance), which gives the projections the same inputs for the
same two dense products a block, or for one where both sites have one basis; where the norm's output is rotated,
embeddings and lm_head stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..kernels.errors import KernelError
from ..kernels.model.held_weights import check_held, held, remember
from ..kernels.plan.bases import FoldedBases
from ..kernels.plan.folding import folded
from .calibration import Calibration
from .errors import UserError
from .hooks import hooked
from .passes.collectors import InputProducts, collected_inputs
from .projections import (
    NORM_PATHS,
    PROJECTION_PATHS,
    decoder_blocks,
    key,
    projections_of_site,
    split_key,
)
from .quantised_model import changed_weight


def orthogonal_column_bases(model: PreTrainedModel, projection_of_site: Mapping[str, str]) -> dict[str, Tensor]:
    """Bases in which one projection of each site has orthogonal columns, gains folded in; by block and site.

    projection_of_site: which projection. Returns (hidden, hidden) float32, the right singular vectors in
    falling order; where the weight has fewer rows than columns, the last ones span its null space in an
    arbitrary way. Raises UserError for weights that are not in memory.
    """
    bases = {}
    for index, block in enumerate(decoder_blocks(model)):
        for site, name in projection_of_site.items():
            weight = block.get_submodule(PROJECTION_PATHS[name]).weight
            if weight.is_meta:
                raise UserError("rotated bases need all weights in memory; set model.offload=never")
            folded = weight.double() * block.get_submodule(NORM_PATHS[site]).weight.double()
            vectors = torch.linalg.eigh(folded.T @ folded).eigenvectors
            bases[key(index, site)] = vectors.flip(1).float().contiguous()
    return bases


def principal_bases(calibration: Calibration, sites: Collection[str], gains_kept: bool) -> dict[str, Tensor]:
    """Principal axes of what enters each site's projections, by block and site (La RoSA, arXiv 2507.01299).

    Eigenvectors of XᵀX, uncentred, over the calibration text, (hidden, hidden) float32 in rising order.
    gains_kept: whether X has the norm's gains. Raises UserError for activations that are not finite.
    """
    blocks = decoder_blocks(calibration.model)
    first = {site: PROJECTION_PATHS[projections_of_site(site)[0]] for site in sites}
    linears = {
        key(index, site): block.get_submodule(path)
        for index, block in enumerate(blocks)
        for site, path in first.items()
    }
    products = {name: InputProducts() for name in linears}
    found = collected_inputs(
        products, linears, calibration.model, calibration.input_ids, calibration.batch_size
    )
    return {name: _axes(blocks, name, one.matrix, gains_kept) for name, one in found.items()}


def _axes(blocks: nn.ModuleList, name: str, products: Tensor, gains_kept: bool) -> Tensor:
    """Eigenvectors of one site's products, (hidden, hidden) float32."""
    block, site = split_key(name)
    if not gains_kept:
        gains = blocks[block].get_submodule(NORM_PATHS[site]).weight.double()
        inverse = torch.where(gains == 0.0, 0.0, 1.0 / gains)  # a channel without a gain is nowhere seen
        products = products * inverse * inverse[:, None]
    if not products.isfinite().all():
        raise UserError(
            f"block {block}: what enters {', '.join(projections_of_site(site))} is not finite on the "
            "calibration text; try model.dtype=float32 or bfloat16"
        )
    return torch.linalg.eigh(products).eigenvectors.float().contiguous()


@contextmanager
def folded_into(model: PreTrainedModel, bases: FoldedBases | None) -> Iterator[None]:
    """Context in which the model's weights are in these bases, and it computes the same function.

    Those of a quantised model are quantised after the change. Raises UserError where other bases are in place.
    """

    def stored(name: str, _: nn.Linear, change: Callable[[Tensor], Tensor]) -> Tensor:
        return changed_weight(model, name, lambda weight: change(weight.double()).to(weight.dtype))

    with ExitStack() as stack:
        try:
            stack.enter_context(folded(model, bases, stored))
        except KernelError as error:
            raise UserError(str(error)) from error
        yield


@contextmanager
def rotated(model: PreTrainedModel, bases: Mapping[str, Tensor], gains_kept: bool = False) -> Iterator[None]:
    """Context in which the projections at these sites work in these bases; after it the model is as before.

    bases: (hidden, hidden) orthogonal matrices by block and site. Weights are rotated in float64;
    those of a quantised model are quantised after the rotation. gains_kept: whether norms keep their gains.
    """
    if not bases:
        yield
        return
    with held(model, "a plan in rotated bases"), ExitStack() as stack:
        for name, basis in bases.items():
            block, site = split_key(name)
            stack.enter_context(_rotated_site(model, block, site, basis, gains_kept))
        remember(model)
        yield
        check_held(model)


@contextmanager
def _rotated_site(
    model: PreTrainedModel, index: int, site: str, basis: Tensor, gains_kept: bool
) -> Iterator[None]:
    block, names = decoder_blocks(model)[index], projections_of_site(site)
    norm = block.get_submodule(NORM_PATHS[site])
    linears = [block.get_submodule(PROJECTION_PATHS[name]) for name in names]
    gains, weights = norm.weight.data, [linear.weight.data for linear in linears]
    exact, online = basis.to(gains.device).double(), basis.to(gains)
    taken_over = torch.ones_like(gains) if gains_kept else gains

    def turned(weight: Tensor) -> Tensor:
        return (weight.double() * taken_over.double() @ exact).to(weight.dtype)

    try:
        with hooked([norm.register_forward_hook(lambda _, __, output: output @ online)]):
            norm.weight.data = gains if gains_kept else torch.ones_like(gains)
            for linear, name in zip(linears, names, strict=True):
                linear.weight.data = changed_weight(model, key(index, name), turned)
            yield
    finally:
        norm.weight.data = gains
        for linear, weight in zip(linears, weights, strict=True):
            linear.weight.data = weight
