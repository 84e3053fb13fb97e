"""A rescale of a model's channels that changes no output, and moves magnitude between activations and weights.

What ranks channels by |x| alone is misled by it. What weighs |x| by the columns' norms follows it, except in v
and up, whose rows are rescaled too.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...method.projections import NORM_PATHS, block_projections, decoder_blocks, projections_of_site

LARGEST_SPREAD = 4.0
"""Factors then reach e^±16 over a few thousand channels, near the end of float16's range."""


@torch.no_grad()
def spread_norms(model: PreTrainedModel, sigma: float, seed: int) -> None:
    """Divide every site's activations by log-normal factors, exp(σ·n), and multiply the columns that read them.

    A norm's gains, up's rows and v's rows take the division, the latter for all query heads of a kv head alike.
    In place, in float64, rounded once.
    """
    generator = torch.Generator().manual_seed(seed)
    kv_heads = model.config.num_key_value_heads

    def factors(channels: int) -> Tensor:
        return torch.randn(channels, generator=generator, dtype=torch.float64).mul(sigma).exp()

    for block in decoder_blocks(model):
        linears = block_projections(block)
        for site, path in NORM_PATHS.items():
            norm = block.get_submodule(path)
            found = factors(len(norm.weight))
            _scale(norm.weight, 1 / found)
            for name in projections_of_site(site):
                _scale(linears[name].weight, found)
        for writer, reader in (("v", "o"), ("up", "down")):
            found = factors(linears[writer].out_features)
            _scale(linears[writer].weight, 1 / found[:, None])
            if linears[writer].bias is not None:
                _scale(linears[writer].bias, 1 / found)
            _scale(linears[reader].weight, _by_reader(found, linears[reader].in_features, kv_heads))


def _by_reader(factors: Tensor, channels: int, kv_heads: int) -> Tensor:
    """Each kv head's factors once for every query head that shares it; down's channels are up's rows."""
    if len(factors) == channels:
        return factors
    heads = factors.view(kv_heads, -1)
    return heads.repeat_interleave(channels // len(factors), dim=0).flatten()


def _scale(parameter: Tensor, factors: Tensor) -> None:
    parameter.copy_((parameter.double() * factors.to(parameter.device)).to(parameter.dtype))
