"""A decoder's weights as kernels read them: `(in, out)`, q+k+v and gate+up side by side, each stored once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .decoder import Decoder, DecoderShape, block_projections
from .executable import check_executable


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
    query_norm: Tensor | None = None
    """(head_dim,) gains of the RMSNorm of every head of q before it is rotated; None: there is none."""
    key_norm: Tensor | None = None
    """(head_dim,) gains of the same norm of k."""


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
        """Device of the projections."""
        return self.blocks[0].qkv.device


@torch.inference_mode(False)  # a weight made under it could never be trained again
@torch.no_grad()
def pack(model: nn.Module, gated_blocks: Collection[int] = ()) -> DecoderWeights:
    """Lay a transformers model's weights out for the kernels; the model goes on working on the same storage.

    Its projections become transposed views, so that prefill, hooks and `generate` read what the kernels read.
    `gated_blocks` read up by neurons. Raises KernelError for a model that cannot be executed.
    """
    decoder = Decoder.of(model)
    check_executable(decoder)
    return DecoderWeights(
        decoder.shape,
        tuple(_pack_block(decoder, index, index in gated_blocks) for index in range(len(decoder.blocks))),
        embedding=decoder.embedding.weight.data,
        final_norm=decoder.final_norm.weight.data,
        lm_head=decoder.lm_head.weight.data,
    )


@torch.inference_mode(False)
@torch.no_grad()
def unpack(model: nn.Module) -> None:
    """Give a packed model's projections weights of their own again, laid out for transformers."""
    for projection in Decoder.of(model).projections():
        projection.linear.weight.data = projection.linear.weight.data.contiguous()


def _pack_block(decoder: Decoder, index: int, gated: bool) -> BlockWeights:
    linears = block_projections(decoder.blocks[index])
    qkv = [linears[name] for name in ("q", "k", "v")]

    return BlockWeights(
        input_norm=decoder.gains(index, "attention_input"),
        qkv=_side_by_side(*qkv),
        qkv_bias=torch.cat([linear.bias.data for linear in qkv]) if decoder.family.qkv_bias else None,
        o=_side_by_side(linears["o"]),
        mlp_norm=decoder.gains(index, "mlp_input"),
        gate_up=None if gated else _side_by_side(linears["gate"], linears["up"]),
        gate=_side_by_side(linears["gate"]) if gated else None,
        up_rows=_by_neuron(linears["up"]) if gated else None,
        down=_side_by_side(linears["down"]),
        query_norm=decoder.gains(index, "q"),
        key_norm=decoder.gains(index, "k"),
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
