"""A plan with chosen entries of chosen tokens sparse, kept or dropped, beside the plan as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...kernels.model.decoder import NORM_PATHS, PROJECTIONS, SITES
from ...method.projections import key, split_key
from ..measured.paired_bootstrap import interval, resample_counts
from ..tables.csv_rows import Row
from .massive_entries import STREAM, AlwaysKept, DroppedAlone, Massive, SparseAt, massive_entries
from .shifted_pass import Choice, Deviation, Lost, StudiedText

FIRST = (1, 2, 4, 16)
"""First tokens of a sequence that are dense."""
COSTLIEST = (1, 2, 3, 5)
"""Blocks in which the first token is dense, of those that it is dearest in."""
BEHIND_NORMS = tuple(kind for site in NORM_PATHS for kind in SITES[site])
"""Kinds of projection that read the stream, behind a norm."""
OF_A_PLAN = ("plan", "dense tokens", "kept besides")
"""Parts in which the plan is followed, with more kept."""
RESAMPLES = 4000


@dataclass(frozen=True, eq=False)
class Bench:
    """One plan in its bases on the text that is measured."""

    text: StudiedText
    tokenizer: PreTrainedTokenizerBase
    seed: int

    @cached_property
    def dense(self) -> Tensor:
        """What the dense model's head reads."""
        return self.text.dense_states()

    @cached_property
    def massive(self) -> list[Massive]:
        """Massive channels of the dense model in these bases."""
        return massive_entries(self.text.model, self.text.ids, self.text.batch_size)

    @cached_property
    def plain(self) -> Lost:
        """What the plan loses as it is, all tokens sparse."""
        return self._lost(None)

    @cached_property
    def _whole(self) -> Lost:
        return self._lost(SparseAt({}))

    @cached_property
    def _counts(self) -> NDArray[np.float64]:
        n = len(self.text.ids)
        drawn = resample_counts(n, RESAMPLES, np.random.default_rng(self.seed))
        return np.vstack([np.ones(n), drawn])

    @cached_property
    def _first(self) -> Tensor:
        """(rows, length) the first token of every sequence."""
        return self._positions(1)

    def entries(self) -> Iterator[Row]:
        """Where massive entries are, a row a channel."""
        for one in self.massive:
            others = one.tokens[:, 1:]
            of_them = Counter(self.text.ids[:, 1:][others].tolist()).most_common(1)
            yield {
                "site": one.site,
                "block": str(one.block),
                "channel": str(one.channel),
                "median": f"{one.median:.4g}",
                "first": f"{float(one.size[:, 0].mean()):.4g}",
                "others": f"{float(one.size[:, 1:].max()):.4g}",
                "other_tokens": f"{float(others.float().mean()):.5f}",
                "commonest": repr(self.tokenizer.decode(of_them[0][:1])) if of_them else "",
            }

    def dropped(self) -> Iterator[Row]:
        """Massive entries dropped from the dense model, and nothing else; a plan's thresholds play no part."""
        if not self.massive:
            return
        hidden = [one for one in self.massive if one.site == "mlp_hidden"]
        at_first = [one for one in hidden if one.tokens[:, 0].any()]
        every = torch.ones_like(self._first)
        yield self._without("inputs of down, first token", at_first, self._first)
        for block in dict.fromkeys(one.block for one in at_first):
            of_block = [one for one in at_first if one.block == block]
            yield self._without(f"inputs of down in block {block}, first token", of_block, self._first)
        yield self._without("inputs of down, all other tokens where they are massive", hidden, ~self._first)
        channels = {one.channel for one in self.massive if one.site == STREAM}
        names = [name for name in self._names if split_key(name)[1] in BEHIND_NORMS]
        for which, tokens in (("first token", self._first), ("all tokens", every)):
            entries = {name: [(channel, tokens) for channel in channels] for name in names}
            setting = f"the stream's channels behind norms, {which}"
            yield self._row("dropped alone", setting, DroppedAlone(entries))

    def needs(self) -> Iterator[Row]:
        """What the plan loses as it is, with tokens dense, at the first token alone, and with more kept."""
        yield self._row("plan", "all tokens sparse", None)
        for setting, tokens in self._kinds_of_tokens():
            yield self._row("dense tokens", setting, self._everywhere(~tokens))
        yield self._row("first token alone sparse", "in all blocks", self._everywhere(self._first))
        for kind in PROJECTIONS:
            yield self._first_in(f"in {kind}", [name for name in self._names if split_key(name)[1] == kind])
        cost = {}
        for block in sorted({split_key(name)[0] for name in self._names}):
            row = self._first_in(f"in block {block}", [n for n in self._names if split_key(n)[0] == block])
            cost[block] = float(row["divergence"])
            yield row
        blocks = sorted(cost, key=cost.__getitem__, reverse=True)
        for kind in PROJECTIONS:
            yield self._first_in(f"in {kind} of block {blocks[0]}", [key(blocks[0], kind)])
        if self.massive:
            yield self._row("kept besides", "massive channels, every token", self._massive_channels())
        yield from self._costliest(blocks)

    def _first_in(self, setting: str, names: list[str]) -> Row:
        sparse = SparseAt(dict.fromkeys(names, self._first))
        return self._row("first token alone sparse", setting, sparse)

    def _costliest(self, blocks: list[int]) -> Iterator[Row]:
        every = torch.ones_like(self._first)
        for count in COSTLIEST:
            names = {name: split_key(name)[0] in blocks[:count] for name in self._names}
            tokens = {name: ~self._first if dense else every for name, dense in names.items()}
            setting = f"the first token in blocks {', '.join(map(str, sorted(blocks[:count])))}"
            yield self._row("kept besides", setting, SparseAt(tokens))

    def _kinds_of_tokens(self) -> Iterator[tuple[str, Tensor]]:
        for count in FIRST:
            yield f"the first {count}", self._positions(count)
        streams = [one.tokens for one in self.massive if one.site == STREAM]
        if streams:
            yield "all whose stream has a massive entry", torch.stack(streams).any(0)
        delimiters = self._delimiters() & ~self._first
        yield "delimiters", delimiters
        drawn = torch.rand(delimiters.shape, generator=torch.Generator().manual_seed(self.seed))
        others = torch.where(self._first, 2.0, drawn)
        yield "as many drawn at random", others <= others.flatten().kthvalue(int(delimiters.sum())).values

    def _delimiters(self) -> Tensor:
        """(rows, length) tokens without a letter or digit."""
        words = [self.tokenizer.decode([number]) for number in self.text.ids.flatten().tolist()]
        bare = torch.tensor([not any(map(str.isalnum, word)) for word in words])
        return bare.view(self.text.ids.shape)

    def _massive_channels(self) -> AlwaysKept:
        """The massive inputs of every projection, and the stream's channels behind norms."""
        stream = {one.channel for one in self.massive if one.site == STREAM}
        kept = {name: stream if split_key(name)[1] in BEHIND_NORMS else set() for name in self._names}
        for one in self.massive:
            for name in one.projections:
                kept[name] = kept[name] | {one.channel}
        return AlwaysKept({name: torch.tensor(sorted(found)) for name, found in kept.items() if found})

    @property
    def _names(self) -> list[str]:
        return list(self.text.plan.shapes)

    def _positions(self, count: int) -> Tensor:
        return (torch.arange(self.text.ids.shape[1]) < count).expand(self.text.ids.shape)

    def _everywhere(self, tokens: Tensor) -> SparseAt:
        return SparseAt(dict.fromkeys(self._names, tokens))

    def _without(self, setting: str, massive: list[Massive], at: Tensor) -> Row:
        entries: dict[str, list[tuple[int, Tensor]]] = {}
        for one in massive:
            for name in one.projections:
                entries.setdefault(name, []).append((one.channel, one.tokens & at))
        return self._row("dropped alone", setting, DroppedAlone(entries))

    def _lost(self, choice: Choice | None) -> Lost:
        return self.text.lost(self.dense, Deviation(choice=choice))

    def _row(self, part: str, setting: str, choice: Choice | None) -> Row:
        return self._said(part, setting, self.plain if choice is None else self._lost(choice))

    def _said(self, part: str, setting: str, lost: Lost) -> Row:
        weights = sum(out * inner for out, inner in self.text.plan.shapes.values())
        more = (lost.read.double().mean() - self.plain.read.double().mean()).item() * weights
        divergence = self._mean(lost.divergence)
        rise = np.exp(self._mean(lost.surprisal) - self._mean(self._whole.surprisal)) - 1.0
        row = {"part": part, "setting": setting, "read": f"{float(lost.read.mean()):.5f}"}
        row["extra_bytes"] = f"{more * self.dense.element_size():.0f}" if part in OF_A_PLAN else ""
        for name, drawn in (("divergence", divergence), ("rise", rise)):
            spread = interval(drawn[0], drawn[1:])
            for column, value in (("", spread.value), ("_low", spread.low), ("_high", spread.high)):
                row[name + column] = f"{value:.6f}"
        return row

    def _mean(self, values: Tensor) -> NDArray[np.float64]:
        return self._counts @ values.double().mean(dim=1).numpy() / self._counts.sum(axis=1)
