"""Calibration: a model, its calibration text, and the statistics that all methods share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm
from transformers import PreTrainedModel

from .errors import UserError
from .histogram import ChannelHistogram
from .hooks import hooked
from .projections import (
    GATE_ACTIVATION_PATH,
    PROJECTION_PATHS,
    SITE_OF_PROJECTION,
    decoder_of,
    model_projections,
    projection_shapes,
)
from .token_policy import TokenPolicy
from .tokens import check_input_ids

Found = TypeVar("Found")
MEASURED = {
    "attention_input": "the inputs of q, k and v",
    "attention_output": "the inputs of o",
    "mlp_input": "the inputs of gate and up",
    "gate_activation": "the activated outputs of gate",
    "mlp_hidden": "the inputs of down",
}
"""What there are statistics of in a block, in the order in which it computes."""

Need = Literal["statistics", "final_states"]
"""What can be collected of the dense model on the calibration text; attributes of `Calibration`."""


@dataclass
class ChannelMoments:
    """Running mean of |u| and u² for each channel."""

    absolute: Tensor | float = 0.0
    squared: Tensor | float = 0.0
    tokens: int = 0

    def update(self, u: Tensor) -> None:
        """Add activations (..., channels)."""
        u = u.detach().flatten(0, -2).double()
        self.absolute = self.absolute + u.abs().sum(dim=0)
        self.squared = self.squared + u.square().sum(dim=0)
        self.tokens += u.shape[0]

    def mean_absolute(self) -> Tensor:
        """E|u|, (channels,) float64."""
        return self.absolute / self.tokens

    def mean_squared(self) -> Tensor:
        """E[u²], (channels,) float64."""
        return self.squared / self.tokens


class InputProducts:
    """XᵀX of everything that goes into a linear layer.

    first_share: the first tokens of the sequences count as so many times all tokens together, besides as they
    are. Attention looks at them from everywhere, and they are few.
    """

    def __init__(self, first_share: float = 0.0) -> None:
        self.matrix: Tensor | float = 0.0
        """(in, in) float64."""
        self._first_share = first_share

    def update(self, x: Tensor) -> None:
        """Add inputs (..., in); those of sequences (sequences, length, in) where first tokens count more."""
        x = x.detach().double()
        every = x.flatten(0, -2)
        self.matrix = self.matrix + every.T @ every
        if self._first_share:
            first, length = x[:, 0], x.shape[1]
            self.matrix = self.matrix + self._first_share * length * (first.T @ first)


@dataclass
class BlockStatistics:
    """Statistics of one block's activations: magnitudes at each site, and moments of up's output."""

    magnitudes: dict[str, ChannelHistogram] = field(default_factory=dict)
    """Histogram of each site: attention_input, attention_output, mlp_input, mlp_hidden, gate_activation."""
    up_output: ChannelMoments = field(default_factory=ChannelMoments)


@dataclass
class Calibration:
    """A model with its calibration tokens, and what was measured of them: once, for all methods."""

    model: PreTrainedModel
    input_ids: Tensor
    """(sequences, length), every position a real token."""
    batch_size: int = 8
    """Sequences a forward pass."""
    search_policy: TokenPolicy | None = None
    """Which tokens are sparse while a method searches; None: all of them."""
    _statistics: list[BlockStatistics] | None = field(default=None, init=False, repr=False)
    _final_states: Tensor | None = field(default=None, init=False, repr=False)
    _found: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        decoder_of(self.model)  # an unsupported family is refused before any work
        check_input_ids(self.input_ids, self.model)

    def prepare(self, needs: Collection[Need]) -> None:
        """Collect what is needed and not there yet, all of it in one dense pass over the calibration text."""
        wanted = set(needs)
        if self._statistics is not None:
            wanted.discard("statistics")
        if self._final_states is not None:
            wanted.discard("final_states")
        if not wanted:
            return
        if self._statistics is None:
            wanted.add("statistics")  # they cost a pass next to nothing, and most methods ask for them later
        statistics, states = dense_pass(self.model, self.input_ids, self.batch_size, wanted)
        self._statistics = statistics or self._statistics
        self._final_states = self._final_states if states is None else states

    @property
    def statistics(self) -> list[BlockStatistics]:
        """Activation statistics by block; collected now where `prepare` was not asked for them."""
        self.prepare({"statistics"})
        return self._statistics

    @property
    def final_states(self) -> Tensor:
        """What the dense model's head reads, (sequences, length, hidden); few methods have use for this much.

        Raises RuntimeError before `prepare` was asked for them: a pass of their own is not made unasked.
        """
        if self._final_states is None:
            raise RuntimeError("no final states yet: name 'final_states' in the method's `needs`")
        return self._final_states

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def blocks(self) -> int:
        """Number of the model's blocks."""
        return len(decoder_of(self.model).blocks)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every block projection."""
        return projection_shapes(self.model)

    @property
    def column_norms(self) -> dict[str, Tensor]:
        """‖W[:, i]‖₂ of every projection, (in,) float32."""
        return self.norms_of(2)

    def norms_of(self, order: int) -> dict[str, Tensor]:
        """‖W[:, i]‖ of that order of every projection, (in,) float32; computed once."""

        def norms() -> dict[str, Tensor]:
            return {
                name: linear.weight.detach().float().norm(order, dim=0)
                for name, linear in model_projections(self.model).items()
            }

        return self.remembered(("norms", order), norms)

    def remembered(self, key: Hashable, find: Callable[[], Found]) -> Found:
        """What `find` finds on this model and text, found once by that key and then shared by all plans."""
        if key not in self._found:
            self._found[key] = find()
        return self._found[key]

    def search_tokens(self, tokens: int) -> Tensor:
        """The first sequences that together hold `tokens` tokens, shortened where one sequence is longer.

        Returns (rows, length) on the model's device. Raises UserError when there is less text than asked for.
        """
        sequences, length = self.input_ids.shape
        if tokens > sequences * length:
            raise UserError(
                f"the search wants {tokens} calibration tokens but there are {sequences * length}; "
                "calibrate on more sequences or lower the method's search tokens"
            )
        length = min(length, tokens)
        return self.input_ids[: tokens // length, :length].to(self.device)

    def spread(self, sequences: int, turn: int = 0) -> slice:
        """About so many sequences from all over the text; others in each turn, while they last.

        At least as many as asked for, where there are as many.
        """
        apart = max(1, len(self.input_ids) // sequences)
        return slice(turn % apart, None, apart)

    def search_positions(self, input_ids: Tensor) -> Tensor | None:
        """Sparse positions (1, length) of search sequences (rows, length); None: every token is sparse."""
        if self.search_policy is None:
            return None
        real = torch.ones_like(input_ids[:1], dtype=torch.bool)
        return self.search_policy.sparse_positions(real, None)


@torch.inference_mode()
def dense_pass(
    model: PreTrainedModel, input_ids: Tensor, batch_size: int, wanted: Collection[Need]
) -> tuple[list[BlockStatistics], Tensor | None]:
    """One pass over `input_ids` (sequences, length), in which all that is wanted is collected.

    Returns histograms and moments of every block, empty where they are not wanted, and what the head reads,
    (sequences, length, hidden), None where it is not. Raises UserError that names the first block and
    projection whose activations are not finite.
    """
    device, inner = next(model.parameters()).device, decoder_of(model).inner
    statistics: list[BlockStatistics] = []
    states: list[Tensor] = []
    with hooked(_statistics_hooks(model, statistics) if "statistics" in wanted else ()):
        for batch in tqdm(input_ids.split(batch_size), desc="calibration", unit="batch", leave=False):
            found = inner(input_ids=batch.to(device), use_cache=False).last_hidden_state
            if "final_states" in wanted:
                states.append(found)
    _check_finite(statistics)
    final = torch.cat(states) if states else None
    if final is not None and not final.isfinite().all():
        raise _not_finite("the final states")
    return statistics, final


def _check_finite(statistics: list[BlockStatistics]) -> None:
    """Raises UserError for what first is not, in the order in which a model computes."""
    if not statistics:
        return
    counts = [torch.stack([one.magnitudes[site].not_finite for site in MEASURED]) for one in statistics]
    for block, site in torch.stack(counts).nonzero().tolist():
        raise _not_finite(f"block {block}: {list(MEASURED.values())[site]}")


def _not_finite(what: str) -> UserError:
    return UserError(
        f"{what} are not finite on the calibration text; load the model in float32 or bfloat16 (model.dtype), "
        "and look at the checkpoint where that does not help"
    )


def _statistics_hooks(model: PreTrainedModel, statistics: list[BlockStatistics]) -> Iterator[RemovableHandle]:
    """Register what fills the statistics of every block, which are appended."""
    device = next(model.parameters()).device
    # One projection of each site stands for all that share its input.
    site_projection = {site: name for name, site in reversed(SITE_OF_PROJECTION.items())}
    for block in decoder_of(model).blocks:
        collected = BlockStatistics()
        statistics.append(collected)
        for site, name in site_projection.items():
            linear = block.get_submodule(PROJECTION_PATHS[name])
            histogram = ChannelHistogram(linear.in_features, device)
            collected.magnitudes[site] = histogram
            yield linear.register_forward_pre_hook(input_recorder(histogram))
        up = block.get_submodule(PROJECTION_PATHS["up"])
        gate_histogram = ChannelHistogram(up.out_features, device)
        collected.magnitudes["gate_activation"] = gate_histogram
        activation = block.get_submodule(GATE_ACTIVATION_PATH)
        yield activation.register_forward_hook(_output_recorder(gate_histogram))
        yield up.register_forward_hook(_output_recorder(collected.up_output))


Collector = TypeVar("Collector", ChannelMoments, InputProducts)


@torch.inference_mode()
def collected_inputs(
    kind: type[Collector], linears: Mapping[str, nn.Linear], model: PreTrainedModel, ids: Tensor, batch: int
) -> dict[str, Collector]:
    """Inputs of linear layers in a collector each, by name: one pass over ids (sequences, length)."""
    check_input_ids(ids, model)
    found = {name: kind() for name in linears}
    with hooked(
        linear.register_forward_pre_hook(input_recorder(found[name])) for name, linear in linears.items()
    ):
        for some in ids.split(batch):
            decoder_of(model).inner(input_ids=some.to(next(model.parameters()).device), use_cache=False)
    return found


def input_recorder(collector: ChannelHistogram | ChannelMoments | InputProducts) -> Callable[..., None]:
    """Forward pre-hook that gives every input to a collector."""

    def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        collector.update(inputs[0])

    return record


def _output_recorder(collector: ChannelHistogram | ChannelMoments) -> Callable[..., None]:
    def record(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        collector.update(output)

    return record
