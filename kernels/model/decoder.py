"""A decoder's anatomy: the model families, and where each finds its blocks, norms and projections.

The one place that knows how transformers spells a model's parts. A family whose blocks are RMSNorm, attention,
RMSNorm and a gated MLP under these names is one entry of `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import KernelError
from ..weight_samples import ACTIVATION


@dataclass(frozen=True)
class Family:
    """Facts about a model family that its configuration does not state."""

    model_type: str
    """Name in config.json."""
    title: str
    """Name as its makers write it, for messages."""
    qkv_bias: bool = False
    """q, k and v have biases."""
    query_key_norm: bool = False
    """Heads of q and of k pass through an RMSNorm over head_dim before they are rotated."""
    sliding_window: bool = False
    """`sliding_window` of the configuration, where it is given, limits attention."""
    window_by_block: bool = False
    """`layer_types` of the configuration says which blocks have the window; else all have it."""


FAMILIES = {
    family.model_type: family
    for family in (
        Family("llama", "Llama"),
        Family("mistral", "Mistral", sliding_window=True),
        Family("qwen2", "Qwen2", qkv_bias=True, sliding_window=True, window_by_block=True),
        Family("qwen3", "Qwen3", query_key_norm=True, sliding_window=True, window_by_block=True),
    )
}
"""Families by the `model_type` of config.json."""

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

SITES = {
    "attention_input": ("q", "k", "v"),
    "attention_output": ("o",),
    "mlp_input": ("gate", "up"),
    "mlp_hidden": ("down",),
}
"""Where activations are sparse, and the projections that read them there, side by side in one tensor."""
SITE_OF_PROJECTION = {projection: site for site, projections in SITES.items() for projection in projections}

NORM_PATHS = {"attention_input": "input_layernorm", "mlp_input": "post_attention_layernorm"}
"""Norm whose output the site's projections read, by site."""
HEAD_NORM_PATHS = {"q": "self_attn.q_norm", "k": "self_attn.k_norm"}
"""Norm of a projection's heads, in families that have one."""
GATE_ACTIVATION_PATH = f"mlp.{ACTIVATION}"
ATTENTION_PATH = "self_attn"
ACTIVATIONS = {"silu": F.silu, "relu": F.relu}
"""What kernels know by `hidden_act` of config.json."""
ROTARY_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angles do not change while a sequence grows."""


@dataclass(frozen=True)
class Projection:
    """One of a block's seven linear layers."""

    block: int
    kind: str
    """One of `PROJECTIONS`."""
    linear: nn.Linear

    @property
    def key(self) -> str:
        """Its name in plans and records."""
        return key(self.block, self.kind)

    @property
    def site(self) -> str:
        """The site whose activations it reads."""
        return SITE_OF_PROJECTION[self.kind]


def key(block: int, projection: str) -> str:
    """Name of one projection of one block in plans and records, such as `3.down`."""
    return f"{block}.{projection}"


def split_key(name: str) -> tuple[int, str]:
    """Inverse of `key`."""
    block, projection = name.split(".")
    return int(block), projection


@dataclass(frozen=True)
class DecoderShape:
    """Sizes that every kernel launch follows from."""

    blocks: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    norm_epsilon: float
    windows: tuple[int | None, ...]
    """Sliding window of each block's attention; None: the whole context."""
    activation: str = "silu"
    """What gates pass through, one of ACTIVATIONS."""

    @property
    def attention_width(self) -> int:
        """Columns of q, and channels that enter o; in some families more than the hidden size."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Columns of k, and of v."""
        return self.kv_heads * self.head_dim

    def projection_shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of a block's projections, by projection."""
        return {
            "q": (self.attention_width, self.hidden),
            "k": (self.kv_width, self.hidden),
            "v": (self.kv_width, self.hidden),
            "o": (self.hidden, self.attention_width),
            "gate": (self.ffn, self.hidden),
            "up": (self.ffn, self.hidden),
            "down": (self.hidden, self.ffn),
        }

    def shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every block projection by key, as plans state them."""
        sizes = self.projection_shapes().items()
        return {key(block, name): shape for block in range(self.blocks) for name, shape in sizes}


@dataclass(frozen=True)
class Product:
    """One launch: projections that read the same activation."""

    name: str
    inner: int
    widths: tuple[int, ...]

    @property
    def out(self) -> int:
        """Columns of the weight."""
        return sum(self.widths)

    @property
    def tiled_widths(self) -> tuple[int, ...]:
        """Widths that are cut into tiles: gate and up are two products of one program."""
        return self.widths[:1] if self.name == "gate_up" else self.widths


def products_of(shape: DecoderShape) -> tuple[Product, ...]:
    """The products of one block."""
    return (
        Product("qkv", shape.hidden, (shape.attention_width, shape.kv_width, shape.kv_width)),
        Product("o", shape.attention_width, (shape.hidden,)),
        Product("gate_up", shape.hidden, (shape.ffn, shape.ffn)),
        Product("down", shape.ffn, (shape.hidden,)),
    )


def family_of(model_type: str | None) -> Family:
    """The family of this `model_type`. Raises KernelError for one that is not known."""
    try:
        return FAMILIES[model_type]
    except KeyError:
        raise KernelError(
            f"model family '{model_type}' is not supported; supported are {', '.join(FAMILIES)}"
        ) from None


def check_windows(config: Any) -> None:
    """Raise KernelError for windows that the family's blocks ignore, or that are too small: a cache of
    transformers would forget other tokens than the blocks do.
    """
    family = family_of(config.model_type)
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if window is not None and not family.sliding_window:
        raise KernelError(
            f"config.json has sliding_window={window}, which {family.title} models do not know; remove it"
        )
    if window is not None and window < 2:  # of one token, a cache of transformers forgets nothing
        raise KernelError(f"config.json has sliding_window={window}; a window has 2 tokens or more, or is null")
    own = "full_attention" if window is None else "sliding_attention"
    if kinds is not None and not family.window_by_block and set(kinds) != {own}:
        raise KernelError(
            f"config.json has layer_types, which {family.title} models ignore: all blocks are {own}; remove it"
        )


def shape_from(config: Any) -> DecoderShape:
    """Sizes that a configuration states, with the attributes of config.json.

    Raises KernelError for a family, an activation or a rotary embedding that kernels do not know.
    """
    family = family_of(config.model_type)
    check_windows(config)
    if (activation := getattr(config, "hidden_act", "silu")) not in ACTIVATIONS:
        known = " and ".join(ACTIVATIONS)
        raise KernelError(f"the decode engine knows the activations {known}, not '{activation}'")
    if (rotary := config.rope_parameters["rope_type"]) not in ROTARY_TYPES:
        raise KernelError(f"rotary embedding '{rotary}' is not supported; known are {', '.join(ROTARY_TYPES)}")
    blocks, heads = config.num_hidden_layers, config.num_attention_heads
    return DecoderShape(
        blocks=blocks,
        hidden=config.hidden_size,
        ffn=config.intermediate_size,
        heads=heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocabulary=config.vocab_size,
        norm_epsilon=config.rms_norm_eps,
        windows=tuple(_window(family, config, block) for block in range(blocks)),
        activation=activation,
    )


def _window(family: Family, config: Any, block: int) -> int | None:
    kinds = getattr(config, "layer_types", None)
    if not family.sliding_window or (kinds is not None and kinds[block] != "sliding_attention"):
        return None
    return getattr(config, "sliding_window", None)


def block_projections(block: nn.Module) -> dict[str, nn.Linear]:
    """The seven linear layers of one block, by projection."""
    return {name: block.get_submodule(path) for name, path in PROJECTION_PATHS.items()}


class Decoder:
    """A causal language model of transformers, by its parts; nothing is copied."""

    def __init__(self, model: nn.Module, family: Family) -> None:
        """Take a model of this family; `Decoder.of` finds the family."""
        self.model = model
        self.family = family
        self.inner: nn.Module = model.model
        """The model without its head: token ids in, the hidden states that the head reads out."""
        self.blocks: nn.ModuleList = self.inner.layers
        self.embedding: nn.Embedding = self.inner.embed_tokens
        self.final_norm: nn.Module = self.inner.norm
        self.rotary: nn.Module = self.inner.rotary_emb
        """Angles of positions: (anything of a dtype and device, position ids) → cosines, sines."""
        self.lm_head: nn.Linear = model.lm_head

    @classmethod
    def of(cls, model: nn.Module) -> Decoder:
        """The parts of a model. Raises KernelError for a family, windows or parts not known here."""
        if not hasattr(model, "config"):
            raise KernelError(f"a {type(model).__name__} is no model of AutoModelForCausalLM; unwrap it")
        check_windows(model.config)
        family = family_of(model.config.model_type)
        if hasattr(model, "lm_head") and hasattr(getattr(model, "model", None), "layers"):
            return cls(model, family)
        raise KernelError(
            f"a {type(model).__name__} is no {family.title} model with blocks and lm_head; load it with "
            "AutoModelForCausalLM, and merge an adapter into it (merge_and_unload)"
        )

    @property
    def shape(self) -> DecoderShape:
        """Sizes of the model. Raises KernelError for what kernels do not execute."""
        return shape_from(self.model.config)

    def projections(self) -> Iterator[Projection]:
        """All projections of all blocks, in order of execution."""
        for index, block in enumerate(self.blocks):
            for kind, linear in block_projections(block).items():
                yield Projection(index, kind, linear)

    def gains(self, block: int, of: str) -> Tensor | None:
        """Gains of the norm before a site or, for q and k, of their heads; None where there is none."""
        if of in HEAD_NORM_PATHS and not self.family.query_key_norm:
            return None
        return self.blocks[block].get_submodule((NORM_PATHS | HEAD_NORM_PATHS)[of]).weight.data
