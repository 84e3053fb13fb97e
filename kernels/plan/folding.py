"""Orthogonal bases folded into a decoder's weights: the same function, other channels, nothing more to read.

A model with RMSNorms computes the same where its residual stream is in any orthogonal basis (SliceGPT, arXiv
2401.15024): with the gains of the norms in the weights behind them, one matrix Q for all blocks turns what is
written into the stream and what is read out of it. A head's values may be in any basis, too, which o undoes
for all heads of q that share them (QuaRot, arXiv 2404.00456). What masks see are the new channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor, nn

from ..model.decoder import NORM_PATHS, SITES, Decoder, block_projections, key
from ..model.executable import check_stream
from .bases import FoldedBases
from .in_use import BasesInUse, Change, Places, Store, exact

LM_HEAD = "lm_head"
_IN_USE: BasesInUse[FoldedBases] = BasesInUse("a plan in folded bases")


def bases_of(model: nn.Module) -> FoldedBases | None:
    """Bases that the model's weights are in now; None: its own."""
    return _IN_USE.of(model)


def folded(model: nn.Module, bases: FoldedBases | None, store: Store = exact) -> AbstractContextManager[None]:
    """Context in which the model's weights are in these bases, None for its own, and stay so.

    The model computes the same function. After the last context of the same bases the weights are as before,
    bit by bit. An embedding that shares the head's weight has one of its own meanwhile. Raises KernelError for
    weights that are not in memory, for parts that `check_stream` refuses, and where another context relies on
    other bases.
    """
    return _IN_USE.relied_on(model, bases, partial(_fold, store))


def _fold(store: Store, decoder: Decoder, bases: FoldedBases, places: Places) -> None:
    device = decoder.lm_head.weight.device
    stream = None if bases.stream is None else bases.stream.to(device).double()
    if stream is not None:
        check_stream(decoder)
    for index, block in enumerate(decoder.blocks):
        values = bases.values.get(index)
        values = None if values is None else values.to(device).double()
        reading, writing = _changes(decoder, index, stream, values)
        for name, linear in block_projections(block).items():
            if changes := [*reading.get(name, ()), *writing.get(name, ())]:
                changed = store(key(index, name), linear, lambda weight, steps=changes: _after(steps, weight))
                places.put(linear, "weight", changed)
            if linear.bias is not None and name in writing:
                bias = _after(writing[name], linear.bias.data.double()[:, None])[:, 0]
                places.put(linear, "bias", bias.to(linear.bias.dtype))
        if stream is not None:
            for path in NORM_PATHS.values():
                norm = block.get_submodule(path)
                places.put(norm, "weight", torch.ones_like(norm.weight.data))
    if stream is not None:
        gains = decoder.final_norm.weight.data.double()
        head = store(LM_HEAD, decoder.lm_head, lambda weight: weight * gains @ stream)
        embedding = decoder.embedding.weight.data
        places.put(decoder.embedding, "weight", (embedding.double() @ stream).to(embedding.dtype))
        places.put(decoder.lm_head, "weight", head)
        places.put(decoder.final_norm, "weight", torch.ones_like(decoder.final_norm.weight.data))


def _changes(
    decoder: Decoder, index: int, stream: Tensor | None, values: Tensor | None
) -> tuple[Mapping[str, list[Change]], Mapping[str, list[Change]]]:
    """Changes of a block's weights (out, in), by projection: of what they read, and of what they write."""
    reading: dict[str, list[Change]] = {name: [] for names in SITES.values() for name in names}
    writing: dict[str, list[Change]] = {}
    if stream is not None:
        for site in NORM_PATHS:
            gains = decoder.gains(index, site).double()
            for name in SITES[site]:
                reading[name].append(lambda weight, gains=gains: weight * gains @ stream)
        for name in ("o", "down"):
            writing.setdefault(name, []).append(lambda weight: stream.T @ weight)
    if values is not None:
        writing.setdefault("v", []).append(lambda weight: _heads_written(weight, values))
        reading["o"].append(lambda weight: _heads_read(weight, values))
    return reading, writing


def _heads_written(weight: Tensor, values: Tensor) -> Tensor:
    """Weight (kv heads · head_dim, in) of v, each head in its own of (kv heads, head_dim, head_dim) bases."""
    by_head = weight.view(*values.shape[:2], -1)
    return (values.transpose(1, 2) @ by_head).reshape(weight.shape)


def _heads_read(weight: Tensor, values: Tensor) -> Tensor:
    """Weight (out, heads · head_dim) of o, which reads every head in the basis of its head of v."""
    by_head = weight.view(len(weight), len(values), -1, values.shape[1])
    return torch.einsum("oghd,gde->oghe", by_head, values).reshape(weight.shape)


def _after(changes: list[Change], weight: Tensor) -> Tensor:
    for change in changes:
        weight = change(weight)
    return weight
