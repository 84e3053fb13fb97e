"""A decoder's weights as kernels read them: `(in, out)`, q+k+v and gate+up side by side, each stored once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import KernelError

FAMILIES = ("llama", "mistral", "qwen2")
ROTARY_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angles do not change while a sequence grows."""


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

    @property
    def attention_width(self) -> int:
        """Columns of q, and channels that enter o."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Columns of k, and of v."""
        return self.kv_heads * self.head_dim

    def shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every block projection by key, as plans state them."""
        by_name = {
            "q": (self.attention_width, self.hidden),
            "k": (self.kv_width, self.hidden),
            "v": (self.kv_width, self.hidden),
            "o": (self.hidden, self.attention_width),
            "gate": (self.ffn, self.hidden),
            "up": (self.ffn, self.hidden),
            "down": (self.hidden, self.ffn),
        }
        return {f"{block}.{name}": shape for block in range(self.blocks) for name, shape in by_name.items()}


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


@dataclass(frozen=True)
class BlockWeights:
    """One block. A weight `(in, out)` has one contiguous row for each input channel."""

    input_norm: Tensor
    qkv: Tensor
    """(hidden, q + 2·kv)"""
    qkv_bias: Tensor | None
    o: Tensor
    """(heads · head_dim, hidden)"""
    mlp_norm: Tensor
    gate_up: Tensor | None
    """(hidden, 2·ffn), gate first; None in a gated block."""
    gate: Tensor | None
    """(hidden, ffn); given in a gated block."""
    up_rows: Tensor | None
    """(ffn, hidden), one row a neuron; given in a gated block, which reads up by neurons (CHESS, CATS)."""
    down: Tensor
    """(ffn, hidden)"""


@dataclass(frozen=True)
class DecoderWeights:
    """All weights of a decoder."""

    shape: DecoderShape
    blocks: tuple[BlockWeights, ...]
    embedding: Tensor
    """(vocabulary, hidden)"""
    final_norm: Tensor
    lm_head: Tensor
    """(vocabulary, hidden)"""

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the projections."""
        return self.blocks[0].qkv.dtype

    @property
    def device(self) -> torch.device:
        """Data type of the projections."""
        return self.blocks[0].qkv.device


def decoder_shape(model: nn.Module) -> DecoderShape:
    """Sizes of a transformers causal language model. Raises KernelError for one that cannot be executed."""
    config = model.config
    if config.model_type not in FAMILIES:
        raise KernelError(f"the decode engine runs {', '.join(FAMILIES)} models, not '{config.model_type}'")
    if config.hidden_act != "silu":
        raise KernelError(f"the decode engine knows the activation silu, not '{config.hidden_act}'")
    rotary = config.rope_parameters["rope_type"]
    if rotary not in ROTARY_TYPES:
        raise KernelError(f"rotary embedding '{rotary}' is not supported; known are {', '.join(ROTARY_TYPES)}")
    return DecoderShape(
        blocks=config.num_hidden_layers,
        hidden=config.hidden_size,
        ffn=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=model.model.layers[0].self_attn.head_dim,
        vocabulary=config.vocab_size,
        norm_epsilon=config.rms_norm_eps,
        windows=tuple(_window(config, block) for block in range(config.num_hidden_layers)),
    )


def pack(model: nn.Module, gated_blocks: Collection[int] = ()) -> DecoderWeights:
    """Lay a transformers model's weights out for the kernels; the model goes on working on the same storage.

    Its projections become transposed views, so that prefill, hooks and `generate` read what the kernels read.
    `gated_blocks` read up by neurons. Raises KernelError for a model that cannot be executed.
    """
    shape = decoder_shape(model)
    blocks = tuple(_pack_block(block, index in gated_blocks) for index, block in enumerate(model.model.layers))
    weights = DecoderWeights(
        shape,
        blocks,
        embedding=model.model.embed_tokens.weight.data,
        final_norm=model.model.norm.weight.data,
        lm_head=model.lm_head.weight.data,
    )
    if weights.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise KernelError(f"weights of {weights.dtype} are not supported; load the model in bfloat16")
    return weights


def unpack(model: nn.Module) -> None:
    """Give a packed model's projections weights of their own again, laid out for transformers."""
    for block in model.model.layers:
        for linear in block.modules():
            if isinstance(linear, nn.Linear):
                linear.weight.data = linear.weight.data.contiguous()


@torch.no_grad()
def _pack_block(block: Any, gated: bool) -> BlockWeights:
    attention, mlp = block.self_attn, block.mlp
    _refuse_bias(attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    biases = [linear.bias for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
    return BlockWeights(
        input_norm=block.input_layernorm.weight.data,
        qkv=_side_by_side(attention.q_proj, attention.k_proj, attention.v_proj),
        qkv_bias=None if biases[0] is None else torch.cat([bias.data for bias in biases]),
        o=_side_by_side(attention.o_proj),
        mlp_norm=block.post_attention_layernorm.weight.data,
        gate_up=None if gated else _side_by_side(mlp.gate_proj, mlp.up_proj),
        gate=_side_by_side(mlp.gate_proj) if gated else None,
        up_rows=_by_neuron(mlp.up_proj) if gated else None,
        down=_side_by_side(mlp.down_proj),
    )


def _side_by_side(*linears: nn.Linear) -> Tensor:
    """(in, total out); the layers' weights become views of it."""
    if (packed := _packed_before(linears)) is not None:
        return packed
    packed = torch.cat([linear.weight.data.T for linear in linears], dim=1).contiguous()
    start = 0
    for linear in linears:
        end = start + linear.out_features
        linear.weight.data = packed[:, start:end].T
        start = end
    return packed


def _packed_before(linears: tuple[nn.Linear, ...]) -> Tensor | None:
    """The tensor that these layers are views of already; a second engine shares the weights of the first."""
    first, total = linears[0].weight.data, sum(linear.out_features for linear in linears)
    place = first.storage_offset()
    for linear in linears:
        weight = linear.weight.data
        same = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or weight.stride() != (1, total) or weight.storage_offset() != place:
            return None
        place += linear.out_features
    return first.as_strided((linears[0].in_features, total), (total, 1))


def _by_neuron(linear: nn.Linear) -> Tensor:
    """(out, in), contiguous; the layer's weight becomes this tensor."""
    linear.weight.data = linear.weight.data.contiguous()
    return linear.weight.data


def _refuse_bias(*linears: nn.Linear) -> None:
    if any(linear.bias is not None for linear in linears):
        raise KernelError("biases are supported on q, k and v only; this model has others")


def _window(config: Any, block: int) -> int | None:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[block] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None)
