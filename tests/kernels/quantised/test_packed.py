"""Stored weights side by side: the same bits, in a model's packed weights too."""

from __future__ import annotations

import pytest
import torch
from wisparse.kernels.errors import KernelError
from wisparse.kernels.model.decoder import Decoder
from wisparse.kernels.model.decoder_weights import check_stored, pack
from wisparse.kernels.quantised.int4 import Int4Weight, int4_rounded
from wisparse.kernels.quantised.int8 import Int8Weight, int8_rounded
from wisparse.kernels.quantised.packed import PackedInt4, PackedInt8, side_by_side

from ...conftest import make_tiny_model


def drawn(inner: int, out: int, seed: int) -> torch.Tensor:
    return torch.randn(inner, out, generator=torch.Generator().manual_seed(seed))


def parts_of(packed: PackedInt8 | PackedInt4) -> list[torch.Tensor]:
    """Dequantised weights of the projections, from what lies side by side."""
    starts = [sum(packed.widths[:place]) for place in range(len(packed.widths))]
    if isinstance(packed, PackedInt8):
        return [
            Int8Weight(
                packed.values[:, start : start + width],
                packed.row_scales[place],
                packed.column_scales[start : start + width],
            ).dequantised()
            for place, (start, width) in enumerate(zip(starts, packed.widths, strict=True))
        ]
    whole = Int4Weight(packed.values, packed.scales, packed.zeros, sum(packed.widths)).dequantised()
    return list(whole.split(packed.widths, dim=1))


@pytest.mark.parametrize(
    "quantise", [int8_rounded, lambda w: int4_rounded(w, 2, True), lambda w: int4_rounded(w, 2, False)]
)
def test_weights_side_by_side_keep_their_bits(quantise):
    stored = [quantise(drawn(5, width, width)) for width in (8, 4, 6)]
    packed = side_by_side(*stored)
    assert packed.shape == (5, 18)
    assert packed.widths == (8, 4, 6)
    assert packed.values.is_contiguous()
    for part, weight in zip(parts_of(packed), stored, strict=True):
        assert torch.equal(part, weight.dequantised())
    assert packed.nbytes == sum(weight.stored_bytes().total for weight in stored)
    again = side_by_side(*stored)
    for held in (again, *stored):
        assert held.values.untyped_storage().data_ptr() == packed.values.untyped_storage().data_ptr()
    assert torch.equal(again.values, packed.values)
    alone = quantise(drawn(8, 5, 0).T)  # as the weight of a linear lies
    values = side_by_side(alone).values
    assert values.is_contiguous()
    assert values.data_ptr() == alone.values.data_ptr() == side_by_side(alone).values.data_ptr()


def test_what_does_not_lie_side_by_side_is_refused():
    eight, four = int8_rounded(drawn(5, 8, 0)), int4_rounded(drawn(5, 8, 0), 4, True)
    with pytest.raises(KernelError, match="int4 and int8 do not lie side by side"):
        side_by_side(eight, four)
    for other in (int4_rounded(drawn(5, 8, 0), 2, True), int4_rounded(drawn(5, 8, 0), 4, False)):
        with pytest.raises(KernelError, match="in groups of one size"):
            side_by_side(four, other)
    with pytest.raises(KernelError, match="two values in 4 bits share a byte"):
        side_by_side(*(int4_rounded(drawn(5, 5, 0), 5, True) for _ in range(2)))


@pytest.mark.parametrize("head", [False, True])
def test_a_model_is_packed_with_stored_weights_and_left_as_it_is(head):
    model = make_tiny_model("qwen2")
    linears = {f"{one.block}.{one.kind}": one.linear for one in Decoder.of(model).projections()}
    linears |= {"lm_head": model.lm_head} if head else {}
    stored = {name: int8_rounded(linear.weight.T) for name, linear in linears.items()}
    before = [(weight.data_ptr(), weight.stride()) for weight in model.parameters()]
    weights = pack(model, stored=stored)
    assert [(weight.data_ptr(), weight.stride()) for weight in model.parameters()] == before
    assert weights.formats == {"int8"}
    assert (weights.dtype, weights.device) == (torch.float32, torch.device("cpu"))
    for part, name in zip(parts_of(weights.blocks[1].qkv), ("1.q", "1.k", "1.v"), strict=True):
        assert torch.equal(part, stored[name].dequantised())
    assert isinstance(weights.lm_head, PackedInt8) == head
    for wrong, message in (
        ({"0.q": stored["0.up"]}, r"0\.q is"),
        ({"5.q": stored["0.q"]}, r"5\.q is .*\(in, out\) is none"),
    ):
        with pytest.raises(KernelError, match=message):
            check_stored(stored | wrong, weights.shape)
    del stored["1.up"]
    with pytest.raises(KernelError, match=r"1\.up is missing"):
        pack(model, stored=stored)
