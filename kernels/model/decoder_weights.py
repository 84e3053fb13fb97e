"""A decoder's weights as kernels read them: `(in, out)`, q+k+v and gate+up side by side, each stored once."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..errors import KernelError
from ..quantised.packed import PackedInt4, PackedWeight, beside_each_other, side_by_side
from ..quantised.proxies import proxy_of
from ..quantised.stored import StoredWeight
from .decoder import NORM_PATHS, Decoder, DecoderShape, block_projections, key
from .executable import check_executable
from .stored_linears import check_not_taken
from .turned_norms import basis_of

LM_HEAD = "lm_head"
"""Name of the head beside the keys of projections."""
PROXIES = "proxies"
"""Name of the product with proxies, as `BlockWeights` has them, beside those of `SITES`."""
NO_GATES_IN_FEW_BITS = (
    "the decode engine does not read neurons of quantised weights by their gate, by signs, by proxies or by "
    "routers; take another method or the model's own weights, or evaluate the plan without the engine "
    "(latency=none)"
)
NO_BASES_IN_FEW_BITS = (
    "weights in few bits are stored in the model's own bases, and this plan has others, folded or rotated; "
    "take a method without them or the model's own weights, or evaluate the plan without the engine "
    "(latency=none)"
)


@dataclass(frozen=True)
class BlockWeights:
    """One block. A weight `(in, out)` has one contiguous row for each input channel.

    In floating point it is a tensor, in few bits a packed weight.
    """

    input_norm: Tensor
    qkv: Tensor | PackedWeight
    """(hidden, q + 2·kv)"""
    qkv_bias: Tensor | None
    o: Tensor | PackedWeight
    """(heads · head_dim, hidden)"""
    mlp_norm: Tensor
    gate_up: Tensor | PackedWeight | None
    """(hidden, 2·ffn), gate first; None in a gated block and in one that chooses neurons before its gate."""
    gate: Tensor | None
    """(hidden, ffn); given in a gated block."""
    up_rows: Tensor | None
    """(ffn, hidden), one row a neuron; given in a gated block (CHESS, CATS) and in one that chooses neurons
    before its gate, which read up by neurons."""
    down: Tensor | PackedWeight
    """(ffn, hidden)"""
    query_norm: Tensor | None = None
    """(head_dim,) gains of the RMSNorm of every head of q before it is rotated; None: there is none."""
    key_norm: Tensor | None = None
    """(head_dim,) gains of the same norm of k."""
    gate_rows: Tensor | None = None
    """(ffn, hidden), one row a neuron; given in a block that chooses neurons before its gate, by signs or by
    proxies, which reads gate by neurons."""
    proxies: PackedInt4 | None = None
    """(hidden, 2·ffn filled up to whole groups), gate's first, with which a block chooses its neurons."""
    input_basis: Tensor | None = None
    """(hidden, hidden) that the normalised stream is multiplied by before q, k and v; None: they read it as it
    is."""
    mlp_basis: Tensor | None = None
    """The same before gate and up."""
    adapter: Tensor | None = None
    """(hidden, hidden) that the residual stream is multiplied by behind the block; None: it stays as it is."""


@dataclass(frozen=True)
class DecoderWeights:
    """All weights of a decoder."""

    shape: DecoderShape
    blocks: tuple[BlockWeights, ...]
    embedding: Tensor
    """(vocabulary, hidden)"""
    final_norm: Tensor
    lm_head: Tensor | PackedWeight
    """(vocabulary, hidden); in few bits (hidden, vocabulary)"""

    @property
    def dtype(self) -> torch.dtype:
        """Data type of activations: that of the projections, where these are in floating point."""
        qkv = self.blocks[0].qkv
        return qkv.dtype if isinstance(qkv, Tensor) else self.blocks[0].input_norm.dtype

    @property
    def device(self) -> torch.device:
        """Device of the projections."""
        qkv = self.blocks[0].qkv
        return qkv.device if isinstance(qkv, Tensor) else qkv.values.device

    @property
    def formats(self) -> frozenset[str]:
        """Formats of the weights in few bits."""
        weights = [self.lm_head, *(weight for block in self.blocks for weight in vars(block).values())]
        return frozenset(weight.format for weight in weights if isinstance(weight, PackedWeight))


@torch.inference_mode(False)  # a weight made under it could never be trained again
@torch.no_grad()
def pack(
    model: nn.Module,
    gated_blocks: Collection[int] = (),
    stored: Mapping[str, StoredWeight] | None = None,
    predicted_blocks: Collection[int] = (),
    proxied_blocks: Mapping[int, int] = MappingProxyType({}),
) -> DecoderWeights:
    """Lay a transformers model's weights out for the kernels; the model goes on working on the same storage.

    Its projections become transposed views, so that prefill, hooks and `generate` read what the kernels read.
    `gated_blocks` read up by neurons, `predicted_blocks` gate as well, and so do `proxied_blocks`, which get
    proxies of both, so many neurons of a block to a scale. With `stored`, weights in few bits by key and maybe
    of `lm_head`, kernels read these, and the model's own projections stay as they are. Raises KernelError for a
    model that cannot be executed, and for stored weights that are not all of its projections.
    """
    decoder = Decoder.of(model)
    check_executable(decoder)
    if stored is None:
        check_not_taken(model)
    else:
        check_stored(stored, decoder.shape)
    if stored is not None and (gated_blocks or predicted_blocks or proxied_blocks):
        raise KernelError(NO_GATES_IN_FEW_BITS)
    if stored is not None and has_turned_norms(decoder):
        raise KernelError(NO_BASES_IN_FEW_BITS)
    gated, chosen, groups = gated_blocks, {*predicted_blocks, *proxied_blocks}, proxied_blocks
    return DecoderWeights(
        decoder.shape,
        tuple(
            _pack_block(decoder, index, index in gated, index in chosen, groups.get(index), stored)
            for index in range(len(decoder.blocks))
        ),
        embedding=decoder.embedding.weight.data,
        final_norm=decoder.final_norm.weight.data,
        lm_head=decoder.lm_head.weight.data if LM_HEAD not in (stored or {}) else side_by_side(stored[LM_HEAD]),
    )


def linears_of(model: nn.Module, names: Collection[str]) -> dict[str, nn.Linear]:
    """Linears of these keys of projections, and of LM_HEAD where that is among them."""
    decoder = Decoder.of(model)
    found = {key(one.block, one.kind): one.linear for one in decoder.projections()}
    return {name: decoder.lm_head if name == LM_HEAD else found[name] for name in names}


def check_stored(stored: Mapping[str, StoredWeight], shape: DecoderShape) -> None:
    """Raise KernelError for weights in few bits that are not those of a model of this shape."""
    expected = {name: (inner, out) for name, (out, inner) in shape.shapes().items()}
    if LM_HEAD in stored:
        expected[LM_HEAD] = (shape.hidden, shape.vocabulary)
    for name in sorted(expected.keys() | stored.keys()):
        found = tuple(stored[name].shape) if name in stored else None
        if found != expected.get(name):
            raise KernelError(
                f"quantised weights of another model: {name} is {found or 'missing'}, the model's (in, out) is "
                f"{expected.get(name, 'none')}"
            )


@torch.inference_mode(False)
@torch.no_grad()
def unpack(model: nn.Module) -> None:
    """Give a packed model's projections weights of their own again, laid out for transformers."""
    for projection in Decoder.of(model).projections():
        projection.linear.weight.data = projection.linear.weight.data.contiguous()


def _pack_block(
    decoder: Decoder,
    index: int,
    gated: bool,
    chosen: bool,
    group: int | None,
    stored: Mapping[str, StoredWeight] | None,
) -> BlockWeights:
    linears = block_projections(decoder.blocks[index])
    qkv = [linears[name] for name in ("q", "k", "v")]

    def packed(*names: str) -> Tensor | PackedWeight:
        if stored is None:
            return _side_by_side(*(linears[name] for name in names))
        return side_by_side(*(stored[key(index, name)] for name in names))

    return BlockWeights(
        input_norm=decoder.gains(index, "attention_input"),
        qkv=packed("q", "k", "v"),
        qkv_bias=torch.cat([linear.bias.data for linear in qkv]) if decoder.family.qkv_bias else None,
        o=packed("o"),
        mlp_norm=decoder.gains(index, "mlp_input"),
        gate_up=None if gated or chosen else packed("gate", "up"),
        gate=packed("gate") if gated else None,
        up_rows=_by_neuron(linears["up"]) if gated or chosen else None,
        down=packed("down"),
        query_norm=decoder.gains(index, "q"),
        key_norm=decoder.gains(index, "k"),
        gate_rows=_by_neuron(linears["gate"]) if chosen else None,
        proxies=None if group is None else _proxies(linears["gate"], linears["up"], group),
        input_basis=_basis(decoder, index, "attention_input"),
        mlp_basis=_basis(decoder, index, "mlp_input"),
    )


def _proxies(gate: nn.Linear, up: nn.Linear, group: int) -> PackedInt4:
    """Both in 4 bits."""
    return side_by_side(*(proxy_of(linear.weight, group) for linear in (gate, up)))


def _basis(decoder: Decoder, index: int, site: str) -> Tensor | None:
    return basis_of(decoder.blocks[index].get_submodule(NORM_PATHS[site]))


def has_turned_norms(decoder: Decoder) -> bool:
    """Whether a norm gives its output in another basis than its own."""
    places = ((index, site) for index in range(len(decoder.blocks)) for site in NORM_PATHS)
    return any(_basis(decoder, *place) is not None for place in places)


def _side_by_side(*linears: nn.Linear) -> Tensor:
    """(in, total out); the layers' weights become views of it."""
    # A second engine shares the weights of the first.
    if (packed := beside_each_other([linear.weight.data.T for linear in linears])) is not None:
        return packed
    packed = torch.cat([linear.weight.data.T for linear in linears], dim=1)
    start = 0
    for linear in linears:
        end = start + linear.out_features
        linear.weight.data = packed[:, start:end].T
        start = end
    return packed


def _by_neuron(linear: nn.Linear) -> Tensor:
    """(out, in), contiguous; the layer's weight becomes this tensor."""
    linear.weight.data = linear.weight.data.contiguous()
    return linear.weight.data
