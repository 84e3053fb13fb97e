"""The seven projections of a block, named alike in every supported model family."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from .errors import UserError

SUPPORTED_FAMILIES = ("llama", "mistral", "qwen2")

PROJECTION_PATHS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
PROJECTIONS = tuple(PROJECTION_PATHS)

SITE_OF_PROJECTION = {
    "q": "attention_input",
    "k": "attention_input",
    "v": "attention_input",
    "o": "attention_output",
    "gate": "mlp_input",
    "up": "mlp_input",
    "down": "mlp_hidden",
}
"""Where a projection's input comes from; projections of one site see the same activations."""

NORM_PATHS = {"attention_input": "input_layernorm", "mlp_input": "post_attention_layernorm"}
"""Norm whose output the site's projections read, by site."""

GATE_ACTIVATION_PATH = "mlp.act_fn"


def projections_of_site(site: str) -> list[str]:
    """The projections that read the activations of a site."""
    return [name for name, own_site in SITE_OF_PROJECTION.items() if own_site == site]


def check_family(model_type: str) -> None:
    """Raises UserError for a model family whose blocks this suite does not know."""
    if model_type not in SUPPORTED_FAMILIES:
        raise UserError(
            f"model family '{model_type}' is not supported; supported are {', '.join(SUPPORTED_FAMILIES)}"
        )


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks of a causal language model. Raises UserError for an unsupported family."""
    check_family(model.config.model_type)
    return model.model.layers


def key(block: int, projection: str) -> str:
    """Name of one projection of one block in plans and records, such as `3.down`."""
    return f"{block}.{projection}"


def split_key(name: str) -> tuple[int, str]:
    """Inverse of `key`."""
    block, projection = name.split(".")
    return int(block), projection


def block_projections(block: nn.Module) -> dict[str, nn.Linear]:
    """The seven linear layers of one block, by projection."""
    return {name: block.get_submodule(path) for name, path in PROJECTION_PATHS.items()}


def model_projections(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """All block projections of a model, by key, in order of execution."""
    return {
        key(index, name): linear
        for index, block in enumerate(decoder_blocks(model))
        for name, linear in block_projections(block).items()
    }


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
