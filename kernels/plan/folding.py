"""Orthogonal bases folded into a decoder's weights: the same function, other channels, nothing more to read.

A model with RMSNorms computes the same where its residual stream is in any orthogonal basis (SliceGPT, arXiv
2401.15024): with the gains of the norms in the weights behind them, one matrix Q for all blocks turns what is
written into the stream and what is read out of it. A head's values may be in any basis, too, which o undoes
for all heads of q that share them (QuaRot, arXiv 2404.00456). What masks see are the new channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import KernelError
from ..model.decoder import NORM_PATHS, SITES, Decoder, block_projections, key
from ..model.held_weights import Holder, hold, let_go, remember
from .bases import FoldedBases

LM_HEAD = "lm_head"
Change = Callable[[Tensor], Tensor]
"""A weight (out, in) float64 in its new basis."""
Store = Callable[[str, nn.Linear, Change], Tensor]
"""The weight of a linear, by name, after a change, as the model stores it."""


@dataclass
class _InUse:
    """Bases that a model's weights are in, None for its own, and how many contexts rely on that."""

    bases: FoldedBases | None
    contexts: int = 0
    before: list[tuple[nn.Module, dict[str, nn.Parameter]]] = field(default_factory=list)
    """Parameters whose place was taken, by module."""
    holder: Holder | None = None

    def turn(self, decoder: Decoder, store: Store) -> None:
        """Turn a model's own weights into the bases."""
        if self.bases is None:
            return
        if any(parameter.is_meta for parameter in decoder.model.parameters()):
            raise KernelError("folded bases need all weights in memory; set model.offload=never")
        self.holder = hold(decoder.model, "a plan in folded bases", in_place=False)
        self.before += [(module, dict(module.named_parameters(recurse=False))) for module in _placed(decoder)]
        with torch.inference_mode(False), torch.no_grad():
            _fold(decoder, self.bases, store)
        remember(decoder.model)

    def restore(self, model: nn.Module) -> None:
        """Give every module its own parameters again."""
        for module, parameters in self.before:
            for name, parameter in parameters.items():
                setattr(module, name, parameter)
        if self.holder is not None:
            let_go(model, self.holder)


_IN_USE: WeakKeyDictionary[nn.Module, _InUse] = WeakKeyDictionary()


def bases_of(model: nn.Module) -> FoldedBases | None:
    """Bases that the model's weights are in now; None: its own."""
    return _IN_USE[model].bases if model in _IN_USE else None


def exact(_: str, linear: nn.Linear, change: Change) -> Tensor:
    """A `Store` of weights that are no quantised ones."""
    return change(linear.weight.data.double()).to(linear.weight.dtype)


@contextmanager
def folded(model: nn.Module, bases: FoldedBases | None, store: Store = exact) -> Iterator[None]:
    """Context in which the model's weights are in these bases, None for its own, and stay so.

    The model computes the same function. After the last context of the same bases the weights are as before,
    bit by bit. An embedding that shares the head's weight has one of its own meanwhile. Raises KernelError for
    weights that are not in memory, and where another context relies on other bases.
    """
    in_use = _IN_USE.setdefault(model, _InUse(bases))
    if in_use.bases is not bases:
        raise KernelError(
            "a plan or an engine acts on this model in other bases of its weights; end its context before, or "
            "take a second copy of the model"
        )
    in_use.contexts += 1
    try:
        if in_use.contexts == 1:
            in_use.turn(Decoder.of(model), store)
        yield
    finally:
        in_use.contexts -= 1
        if not in_use.contexts:
            in_use.restore(model)
            del _IN_USE[model]


def _placed(decoder: Decoder) -> Iterator[nn.Module]:
    """Modules whose parameters folding takes the place of."""
    yield from (projection.linear for projection in decoder.projections())
    yield from (block.get_submodule(path) for block in decoder.blocks for path in NORM_PATHS.values())
    yield from (decoder.embedding, decoder.final_norm, decoder.lm_head)


def _fold(decoder: Decoder, bases: FoldedBases, store: Store) -> None:
    device = decoder.lm_head.weight.device
    stream = None if bases.stream is None else bases.stream.to(device).double()
    for index, block in enumerate(decoder.blocks):
        values = bases.values.get(index)
        values = None if values is None else values.to(device).double()
        reading, writing = _changes(decoder, index, stream, values)
        for name, linear in block_projections(block).items():
            if changes := [*reading.get(name, ()), *writing.get(name, ())]:
                changed = store(key(index, name), linear, lambda weight, steps=changes: _after(steps, weight))
                _place(linear, "weight", changed)
            if linear.bias is not None and name in writing:
                bias = _after(writing[name], linear.bias.data.double()[:, None])[:, 0]
                _place(linear, "bias", bias.to(linear.bias.dtype))
        if stream is not None:
            for path in NORM_PATHS.values():
                norm = block.get_submodule(path)
                _place(norm, "weight", torch.ones_like(norm.weight.data))
    if stream is not None:
        gains = decoder.final_norm.weight.data.double()
        head = store(LM_HEAD, decoder.lm_head, lambda weight: weight * gains @ stream)
        embedding = decoder.embedding.weight.data
        _place(decoder.embedding, "weight", (embedding.double() @ stream).to(embedding.dtype))
        _place(decoder.lm_head, "weight", head)
        _place(decoder.final_norm, "weight", torch.ones_like(decoder.final_norm.weight.data))


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


def _place(module: nn.Module, name: str, value: Tensor) -> None:
    setattr(module, name, nn.Parameter(value.contiguous(), requires_grad=False))
