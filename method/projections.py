"""The seven projections of a block, named alike in every model family; where they are, `Decoder` knows."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from ..kernels.errors import KernelError
from ..kernels.model.decoder import (
    GATE_ACTIVATION_PATH,
    NORM_PATHS,
    PROJECTION_PATHS,
    PROJECTIONS,
    SITE_OF_PROJECTION,
    SITES,
    Decoder,
    block_projections,
    family_of,
    key,
    split_key,
)
from ..kernels.model.executable import check_linears
from .errors import UserError

__all__ = [
    "GATE_ACTIVATION_PATH",
    "NORM_PATHS",
    "PROJECTIONS",
    "PROJECTION_PATHS",
    "SITE_OF_PROJECTION",
    "block_projections",
    "check_family",
    "decoder_blocks",
    "decoder_of",
    "key",
    "model_projections",
    "parameter_shares",
    "projection_shapes",
    "projections_of_site",
    "split_key",
]


def projections_of_site(site: str) -> tuple[str, ...]:
    """The projections that read the activations of a site."""
    return SITES[site]


def check_family(model_type: str | None) -> None:
    """Raises UserError for a model family whose blocks this suite does not know."""
    try:
        family_of(model_type)
    except KernelError as error:
        raise UserError(str(error)) from error


def decoder_of(model: PreTrainedModel) -> Decoder:
    """The parts of a causal language model. Raises UserError for an unsupported family."""
    try:
        return Decoder.of(model)
    except KernelError as error:
        raise UserError(str(error)) from error


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks of a causal language model. Raises UserError for an unsupported family."""
    return decoder_of(model).blocks


def model_projections(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """All block projections of a model, by key, in order of execution.

    Raises UserError for an unsupported family, and for what is no linear layer, as where an adapter was put in.
    """
    decoder = decoder_of(model)
    try:
        check_linears(decoder)
    except KernelError as error:
        raise UserError(str(error)) from error
    return {projection.key: projection.linear for projection in decoder.projections()}


def projection_shapes(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """(out, in) of every projection: what a plan is made for and can be applied to."""
    return {name: tuple(linear.weight.shape) for name, linear in model_projections(model).items()}


def parameter_shares(block: nn.Module) -> dict[str, float]:
    """Share of the block's projection parameters that each projection holds; sums to 1.

    Block sparsity is the mean of projection sparsities under these weights.
    """
    sizes = {name: linear.weight.numel() for name, linear in block_projections(block).items()}
    total = sum(sizes.values())
    return {name: size / total for name, size in sizes.items()}
