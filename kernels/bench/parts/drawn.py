"""What a decode step is given where there is no model: random weights, plans and caches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ...model.decoder import FAMILIES, DecoderShape, Family, products_of
from ...model.decoder_weights import BlockWeights, DecoderWeights
from ...model.static_cache import StaticCache
from ...plan.block_plan import BlockPlan
from ...plan.projection_rule import ProjectionRule
from ...quantised.packed import PackedInt4, PackedInt8, PackedWeight

GROUP = 128
"""Outputs that share a scale in 4 bits."""
SPARE = 8
"""Free slots behind a context."""


def head_bits_beside(bits: int) -> int:
    """Bits of lm_head in `quantisation=`: 8 beside weights in few bits."""
    return 16 if bits == 16 else 8


def random_weights(
    shape: DecoderShape,
    bits: int,
    head_bits: int,
    dtype: torch.dtype,
    device: torch.device,
    group: int = GROUP,
    family: Family = FAMILIES["llama"],
) -> DecoderWeights:
    """Weights of a model of this shape whose sums are about as large as what enters.

    bits: 8, 4 in groups of `group` outputs, or 16 for weights in `dtype`. family: has biases of q, k and v, or
    norms of heads, or neither.
    """
    draw = partial(_drawn, dtype=dtype, device=device, group=group)
    ones = torch.ones(shape.hidden, dtype=dtype, device=device)
    bias = torch.zeros(shape.attention_width + 2 * shape.kv_width, dtype=dtype, device=device)
    of_heads = torch.ones(shape.head_dim, dtype=dtype, device=device) if family.query_key_norm else None
    common = {
        "input_norm": ones,
        "qkv_bias": bias if family.qkv_bias else None,
        "mlp_norm": ones,
        "gate": None,
        "up_rows": None,
        "query_norm": of_heads,
        "key_norm": of_heads,
    }
    blocks = []
    for _ in range(shape.blocks):
        found = {one.name: draw(one.inner, one.widths, bits) for one in products_of(shape)}
        blocks.append(BlockWeights(**common, **found))
    embedding = draw(shape.vocabulary, (shape.hidden,), 16)
    head = embedding if head_bits == 16 else draw(shape.hidden, (shape.vocabulary,), head_bits)
    return DecoderWeights(shape, tuple(blocks), embedding, ones, head)


def row_weights(weights: DecoderWeights) -> DecoderWeights:
    """The same weights, with rows of gate and of up by neurons."""

    def by_neuron(weight: Tensor) -> Tensor:
        return weight.T.contiguous()

    blocks = []
    for block in weights.blocks:
        gate, up = block.gate_up.chunk(2, dim=1)
        rows = {"gate_rows": by_neuron(gate), "up_rows": by_neuron(up), "gate_up": None}
        blocks.append(replace(block, **rows))
    return replace(weights, blocks=tuple(blocks))


def _drawn(
    inner: int, widths: tuple[int, ...], bits: int, dtype: torch.dtype, device: torch.device, group: int
) -> Tensor | PackedWeight:
    out, scale = sum(widths), inner**-0.5
    if bits == 16:
        return torch.randn(inner, out, dtype=dtype, device=device).mul_(scale)
    if bits == 8:
        values = torch.randint(-127, 128, (inner, out), dtype=torch.int8, device=device)
        rows = torch.full((len(widths), inner), scale / 64, device=device)
        return PackedInt8(values, rows, torch.ones(out, device=device), widths)
    values = torch.randint(0, 256, (inner, out // 2), dtype=torch.uint8, device=device)
    scales = torch.full((inner, out // group), scale / 4, dtype=torch.float16, device=device)
    return PackedInt4(values, scales, None, widths)


def dropping(shape: DecoderShape, sparsity: float, device: torch.device) -> tuple[BlockPlan, ...]:
    """Plans that drop the same share of channels of every site, drawn at random, of any activation."""
    generator = torch.Generator(device).manual_seed(0)
    blocks = []
    for _ in range(shape.blocks if sparsity else 0):
        kept = {
            inner: torch.rand(inner, generator=generator, device=device).argsort() >= sparsity * inner
            for _, inner in shape.projection_shapes().values()
        }
        blocks.append(
            BlockPlan(
                {
                    name: ProjectionRule(thresholds=torch.where(kept[inner], 0.0, torch.inf))
                    for name, (_, inner) in shape.projection_shapes().items()
                }
            )
        )
    return tuple(blocks)


@dataclass(frozen=True)
class DrawnPlan:
    """A plan under which each row of a batch drops this share of channels, whatever the activation.

    Rows choose independently of each other, and a batch reads what any of them keeps: dropped are the channels
    that all rows drop, `sparsity` to the power of the rows.
    """

    shape: DecoderShape
    sparsity: float
    batch: int
    device: torch.device
    quantisation = None
    weight_samples = None
    folded = None

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every projection."""
        return self.shape.shapes()

    @property
    def unread(self) -> float:
        """Share of channels that no row keeps."""
        return self.sparsity**self.batch

    def block_plans(self) -> tuple[BlockPlan, ...]:
        """The plan of every block."""
        return dropping(self.shape, self.unread, self.device)

    def expected_sparsity(self, _: str) -> float:
        """Share of channels that one row drops."""
        return self.sparsity


def bytes_read(weights: DecoderWeights, sparsity: float) -> float:
    """Bytes of a token's weights: those of blocks by the share of channels that is kept, and the head."""
    blocks = sum(
        weight.nbytes
        for block in weights.blocks
        for weight in vars(block).values()
        if weight is not None and not (isinstance(weight, Tensor) and weight.ndim == 1)
    )
    return blocks * (1.0 - sparsity) + weights.lm_head.nbytes


def filled_cache(
    shape: DecoderShape,
    dtype: torch.dtype,
    device: torch.device,
    context: int,
    batch: int = 1,
    spare: int = SPARE,
) -> StaticCache:
    """A cache of so many tokens a row, and `spare` free slots."""
    capacity = context + spare
    size = (shape.blocks, batch, shape.kv_heads, capacity, shape.head_dim)

    def slots() -> Tensor:
        found = torch.empty(size, dtype=dtype, device=device)
        for block in found:
            block.normal_()
        return found

    return StaticCache(
        keys=slots(),
        values=slots(),
        length=torch.full((1,), context, dtype=torch.int32, device=device),
        first=torch.zeros(batch, dtype=torch.int32, device=device),
        cosines=torch.ones(capacity, shape.head_dim, device=device),
        sines=torch.zeros(capacity, shape.head_dim, device=device),
    )


def cache_bytes(shape: DecoderShape, dtype: torch.dtype, context: int, batch: int) -> int:
    """Bytes of the keys and values of `filled_cache`."""
    return 2 * shape.blocks * batch * shape.kv_width * (context + SPARE) * dtype.itemsize
