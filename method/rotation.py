"""Rotated bases: projections that read normalized hidden states read them times an orthogonal matrix.

With W̃ = W·diag(g)·Q for the gains g of the norm before it, (x/g)·Q·W̃ᵀ = x·Wᵀ: nothing changes but the
channels that masks see. WINA's code rotates the residual stream instead (SliceGPT's invariance), which gives
the projections the same inputs for the same two dense products a block; where the norm's output is rotated,
embeddings and lm_head stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .errors import UserError
from .hooks import hooked
from .projections import (
    NORM_PATHS,
    PROJECTION_PATHS,
    decoder_blocks,
    key,
    projections_of_site,
    split_key,
)
from .quantisation.model import changed_weight


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
            bases[key(index, site)] = vectors.flip(1).float()
    return bases


@contextmanager
def rotated(model: PreTrainedModel, bases: Mapping[str, Tensor]) -> Iterator[None]:
    """Context in which the projections at these sites work in these bases; after it the model is as before.

    bases: (hidden, hidden) orthogonal matrices by block and site. Weights are rotated in float64;
    those of a quantised model are quantised after the rotation.
    """
    with ExitStack() as stack:
        for name, basis in bases.items():
            block, site = split_key(name)
            stack.enter_context(_rotated_site(model, block, site, basis))
        yield


@contextmanager
def _rotated_site(model: PreTrainedModel, index: int, site: str, basis: Tensor) -> Iterator[None]:
    block, names = decoder_blocks(model)[index], projections_of_site(site)
    norm = block.get_submodule(NORM_PATHS[site])
    linears = [block.get_submodule(PROJECTION_PATHS[name]) for name in names]
    gains, weights = norm.weight.data, [linear.weight.data for linear in linears]
    exact, online = basis.to(gains.device).double(), basis.to(gains)

    def turned(weight: Tensor) -> Tensor:
        return (weight.double() * gains.double() @ exact).to(weight.dtype)

    try:
        with hooked([norm.register_forward_hook(lambda _, __, output: output @ online)]):
            norm.weight.data = torch.ones_like(gains)
            for linear, name in zip(linears, names, strict=True):
                linear.weight.data = changed_weight(model, key(index, name), turned)
            yield
    finally:
        norm.weight.data = gains
        for linear, weight in zip(linears, weights, strict=True):
            linear.weight.data = weight
