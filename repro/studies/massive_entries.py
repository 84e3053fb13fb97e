"""Massive activations of a text, site by site, and passes in which chosen entries are sparse or kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ...kernels.model.decoder import SITES
from ...method.hooks import hooked
from ...method.projections import decoder_of, key, model_projections

STREAM = "stream"
"""The residual stream behind a block, beside the inputs of its projections."""
TIMES_MEDIAN = 500.0
"""An entry is massive from so many times its site's median |x| on. Sun et al. (arXiv 2402.17762) say about
1,000 of the residual stream; the smaller ones of the first blocks lie between."""


@dataclass(frozen=True, eq=False)
class Massive:
    """A channel of a site that is massive at some tokens."""

    site: str
    """`stream`, or where a block's projections read."""
    block: int
    channel: int
    median: float
    """Median of |x| over the site's channels and the text's tokens."""
    size: Tensor
    """(rows, length) |x|."""

    @property
    def tokens(self) -> Tensor:
        """(rows, length) whether it is massive there."""
        return self.size >= TIMES_MEDIAN * self.median

    @property
    def projections(self) -> list[str]:
        """Projections that read it; none of the stream, which norms come before."""
        return [key(self.block, kind) for kind in SITES.get(self.site, ())]


@torch.inference_mode()
def massive_entries(model: PreTrainedModel, ids: Tensor, batch_size: int) -> list[Massive]:
    """Every massive channel of the dense model on a text, in the bases that it is in; ids: (rows, length)."""
    seen: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    with hooked(_seeing(model, seen)):
        for part in ids.split(batch_size):
            decoder_of(model).inner(input_ids=part, use_cache=False)
    found = []
    for (site, block), parts in seen.items():
        size = torch.cat(parts).abs()
        median = float(size.median())
        channels = (size >= TIMES_MEDIAN * median).flatten(0, 1).any(0).nonzero().flatten().tolist()
        found += [Massive(site, block, channel, median, size[..., channel].clone()) for channel in channels]
    return sorted(found, key=lambda one: (one.site, one.block, one.channel))


def _seeing(model: PreTrainedModel, seen: Mapping[tuple[str, int], list[Tensor]]) -> Iterator[RemovableHandle]:
    def stream(block: int) -> Callable[..., None]:
        def see(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
            seen[STREAM, block].append(output[0] if isinstance(output, tuple) else output)

        return see

    def inputs(site: str, block: int) -> Callable[..., None]:
        return lambda _, given: seen[site, block].append(given[0])

    projections = model_projections(model)
    for number, block in enumerate(decoder_of(model).blocks):
        yield block.register_forward_hook(stream(number))
        for site, (kind, *_) in SITES.items():
            yield projections[key(number, kind)].register_forward_pre_hook(inputs(site, number))


@dataclass(frozen=True, eq=False)
class SparseAt:
    """The plan's thresholds at some tokens, by projection; all else is dense."""

    tokens: Mapping[str, Tensor]
    """(rows, length) where a projection is sparse; nowhere in one that is not named."""

    def kept(self, name: str, kept: Tensor, rows: slice) -> Tensor:
        """Everything but what the thresholds drop at these tokens."""
        return kept | ~self.tokens[name][rows, :, None] if name in self.tokens else torch.ones_like(kept)


@dataclass(frozen=True, eq=False)
class AlwaysKept:
    """The plan's thresholds, but for channels that every token keeps."""

    channels: Mapping[str, Tensor]
    """Channels, by projection."""

    def kept(self, name: str, kept: Tensor, rows: slice) -> Tensor:
        """What the thresholds keep, and these channels."""
        if name not in self.channels:
            return kept
        return kept.index_fill(-1, self.channels[name], True)


@dataclass(frozen=True, eq=False)
class DroppedAlone:
    """Massive entries dropped from the dense model, and nothing else."""

    entries: Mapping[str, list[tuple[int, Tensor]]]
    """Channels, each with (rows, length) where it is dropped, by projection."""

    def kept(self, name: str, kept: Tensor, rows: slice) -> Tensor:
        """Everything but these entries."""
        kept = torch.ones_like(kept)
        for channel, tokens in self.entries.get(name, ()):
            kept[..., channel] &= ~tokens[rows]
        return kept
