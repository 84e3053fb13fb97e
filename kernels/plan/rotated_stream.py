"""A residual stream in the bases of its blocks: one product a block in place of two behind its norms.

Where both sites of a block read x/g in one basis Q, the stream itself may be in it: an RMSNorm without gains
gives h·Q what it gives h, times Q. What is written into the stream then is turned once and for all, and between
two blocks the stream passes through an adapter Q_lᵀ·Q_{l+1} (SliceGPT, arXiv 2401.15024; La RoSA, 2507.01299).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from ..model.decoder_weights import BlockWeights, DecoderWeights
from .block_plan import BlockPlan
from .projection_rule import ProjectionRule

WRITING = ("o", "down")
"""Projections that write into the residual stream."""


@torch.inference_mode(False)
@torch.no_grad()
def with_rotated_stream(
    weights: DecoderWeights, rules: tuple[BlockPlan, ...]
) -> tuple[DecoderWeights, tuple[BlockPlan, ...]]:
    """Weights and rules with the stream in the basis of each block whose two sites have the same and no gains.

    What is turned, o and down of these blocks, is a copy beside the model's own, as is the embedding where the
    first block is one of them. Other blocks and their stream stay as they are.
    """
    bases = [_of_the_stream(block) for block in weights.blocks]
    if not any(basis is not None for basis in bases):
        return weights, rules
    blocks = []
    for block, (basis, following) in zip(weights.blocks, pairwise([*bases, None]), strict=True):
        adapter = _adapter(basis, following)
        turned = {name: _times(getattr(block, name), basis) for name in WRITING}
        norms = {} if basis is None else {"input_basis": None, "mlp_basis": None}
        blocks.append(replace(block, adapter=adapter, **turned, **norms))
    embedding = _times(weights.embedding, bases[0])
    return replace(weights, blocks=tuple(blocks), embedding=embedding), _turned_rules(rules, bases)


def _of_the_stream(block: BlockWeights) -> Tensor | None:
    first, second = block.input_basis, block.mlp_basis
    if first is None or second is None or not torch.equal(first, second):
        return None
    without_gains = all(bool((gains == 1.0).all()) for gains in (block.input_norm, block.mlp_norm))
    return first if without_gains else None


def _adapter(basis: Tensor | None, following: Tensor | None) -> Tensor | None:
    """(hidden, hidden) from the basis of one block to that of the next, None for the model's own."""
    if basis is None or following is None:
        return following if basis is None else basis.T.contiguous()
    return _times(basis.T, following)


def _times(matrix: Tensor, basis: Tensor | None) -> Tensor:
    return matrix if basis is None else (matrix.double() @ basis.double()).to(matrix.dtype)


def _turned_rules(rules: Iterable[BlockPlan], bases: Iterable[Tensor | None]) -> tuple[BlockPlan, ...]:
    """Rules of o and down that write in these bases."""
    return tuple(
        block if basis is None else replace(block, rules={**block.rules, **_writing_in(basis, block)})
        for block, basis in zip(rules, bases, strict=True)
    )


def _writing_in(basis: Tensor, block: BlockPlan) -> dict[str, ProjectionRule]:
    found = {}
    for name in WRITING:
        if (rule := block.of(name)) is not None:
            bias = None if rule.bias is None else _times(rule.bias[None], basis)[0]
            left = None if rule.left is None else _times(rule.left.T, basis).T.contiguous()
            found[name] = replace(rule, bias=bias, left=left)
    return found
