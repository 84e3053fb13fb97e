"""Passes in which a plan's thresholds deviate by token, projection or rule, and what they lose and read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ...kernels.reference import dropped_by_top_k
from ...method.hooks import hooked
from ...method.plan import SparsityPlan
from ...method.projections import decoder_of, model_projections, split_key
from ...method.search.logits import tokens_at_once


@dataclass
class Seen:
    """What a pass has seen of a batch's tokens so far, block by block."""

    streams: list[Tensor] = field(default_factory=list)
    """(rows, length, hidden), what enters a block."""
    kept: list[Tensor] = field(default_factory=list)
    """(rows, length) share of a block's weights that was read."""


class Shift(Protocol):
    """What a token's thresholds are moved by in a block."""

    def octaves(self, seen: Seen, rows: slice) -> Tensor:
        """(rows, length) for the block that the last stream enters; rows: of the text."""


class Choice(Protocol):
    """What a projection keeps in place of what the thresholds say."""

    def kept(self, name: str, kept: Tensor, rows: slice) -> Tensor:
        """(rows, length, channels) of the projection `name`; kept: by its thresholds, rows: of the text."""


@dataclass(frozen=True)
class Deviation:
    """How a pass deviates from the thresholds of its plan."""

    octaves: float = 0.0
    """All thresholds are moved by."""
    shift: Shift | None = None
    """What each token's are moved by besides."""
    moves: Mapping[str, float] = field(default_factory=dict)
    """Octaves that a projection's are moved by besides."""
    top_k: Mapping[str, int] = field(default_factory=dict)
    """Channels that every token keeps, by projection, in place of its thresholds."""
    choice: Choice | None = None
    """What is kept after all that."""


@dataclass(frozen=True)
class Lost:
    """What a pass loses and reads of a text, by token."""

    divergence: Tensor
    """(rows, length) KL(dense ‖ sparse) of the prediction behind each token, in nats."""
    surprisal: Tensor
    """(rows, length - 1) of the text's next token under that prediction, in nats."""
    read: Tensor
    """(blocks, rows, length) share of a block's weights."""
    seen: list[Seen]
    """What each batch saw, where it was asked for."""


@dataclass(frozen=True, eq=False)
class StudiedText:
    """A model in the bases of its plan, some text, and the dense model's predictions of it."""

    model: PreTrainedModel
    plan: SparsityPlan
    ids: Tensor
    """(rows, length)."""
    batch_size: int = 4

    @torch.inference_mode()
    def dense_states(self) -> Tensor:
        """What the dense model's head reads, (rows, length, hidden)."""
        inner = decoder_of(self.model).inner
        return torch.cat([inner(input_ids=ids, use_cache=False)[0] for ids in self.ids.split(self.batch_size)])

    @torch.inference_mode()
    def lost(self, dense: Tensor, deviation: Deviation, keep_seen: bool = False) -> Lost:
        """What the plan loses under a deviation; dense: from `dense_states`."""
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        kept: list[Seen] = []
        for first in range(0, len(self.ids), self.batch_size):
            rows = slice(first, first + self.batch_size)
            hooks = _Hooks(self.model, self.plan, deviation, rows)
            with hooked(hooks.on_blocks()):
                states = decoder_of(self.model).inner(input_ids=self.ids[rows], use_cache=False)[0]
            found.append((*self._compared(states, dense[rows], rows), torch.stack(hooks.seen.kept)))
            kept += [hooks.seen] if keep_seen else []
        divergence, surprisal, read = zip(*found, strict=True)
        return Lost(torch.cat(divergence), torch.cat(surprisal), torch.cat(read, dim=1), kept)

    def _compared(self, states: Tensor, dense: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """(rows, length) divergence and (rows, length - 1) surprisal."""
        head, at_once = decoder_of(self.model).lm_head, tokens_at_once(self.model)
        divergence, surprisal = [], []
        following = self.ids[rows].roll(-1, dims=1)  # the last of a row has none, and is left out below
        parts = [given.flatten(0, 1).split(at_once) for given in (states, dense, following[..., None])]
        for ours, theirs, ids in zip(*parts, strict=True):
            got, expected = (head(part).float().log_softmax(-1) for part in (ours, theirs))
            divergence.append((expected.exp() * (expected - got)).sum(-1))
            surprisal.append(-got.gather(-1, ids)[..., 0])
        shape = states.shape[:2]
        return torch.cat(divergence).view(shape), torch.cat(surprisal).view(shape)[:, :-1]


class _Hooks:
    """The hooks of one batch."""

    def __init__(self, model: PreTrainedModel, plan: SparsityPlan, deviation: Deviation, rows: slice) -> None:
        self.seen = Seen()
        self._model, self._plan, self._deviation, self._rows = model, plan, deviation, rows
        self._octaves: Tensor | float = deviation.octaves
        """Move of the thresholds in the block that computes now, (rows, length, 1) or one number."""
        blocks = range(len(decoder_of(model).blocks))
        self._weights = [
            sum(out * inner for name, (out, inner) in plan.shapes.items() if split_key(name)[0] == block)
            for block in blocks
        ]

    def on_blocks(self) -> Iterator[RemovableHandle]:
        """Register them."""
        for block in decoder_of(self._model).blocks:
            yield block.register_forward_pre_hook(self._enters)
        for name, linear in model_projections(self._model).items():
            yield linear.register_forward_pre_hook(self._dropping(name))

    def _enters(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.seen.streams.append(inputs[0])
        if self._deviation.shift is not None:
            moved = self._deviation.shift.octaves(self.seen, self._rows)
            self._octaves = (moved + self._deviation.octaves)[..., None]
        self.seen.kept.append(torch.zeros(inputs[0].shape[:2]))

    def _dropping(self, name: str) -> Callable[..., tuple[Tensor]]:
        thresholds, out = self._plan.rules[name].thresholds, self._plan.shapes[name][0]
        share = out / self._weights[split_key(name)[0]]
        thresholds = thresholds * 2.0 ** self._deviation.moves.get(name, 0.0)
        k = self._deviation.top_k.get(name)

        def drop(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
            (x,) = inputs
            if k is None:
                moved = self._octaves.exp2() if isinstance(self._octaves, Tensor) else 2.0**self._octaves
                kept = x.abs() >= thresholds * moved
            else:
                kept = ~dropped_by_top_k(x, 1.0 / thresholds.clamp_min(1e-9), k)
            if self._deviation.choice is not None:
                kept = self._deviation.choice.kept(name, kept, self._rows)
            self.seen.kept[-1] += share * kept.sum(-1)
            return (x * kept,)

        return drop
