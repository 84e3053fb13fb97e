"""Calibration: a model, its calibration text, and the statistics that all methods share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm
from transformers import PreTrainedModel

from .errors import UserError
from .histogram import ChannelHistogram
from .projections import (
    GATE_ACTIVATION_PATH,
    PROJECTION_PATHS,
    SITE_OF_PROJECTION,
    decoder_of,
    model_projections,
    projection_shapes,
)
from .token_policy import Protocol


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


@dataclass
class BlockStatistics:
    """Statistics of one block's activations: magnitudes at each site, and moments of up's output."""

    magnitudes: dict[str, ChannelHistogram] = field(default_factory=dict)
    """Histogram of each site: attention_input, attention_output, mlp_input, mlp_hidden, gate_activation."""
    up_output: ChannelMoments = field(default_factory=ChannelMoments)


@dataclass
class Calibration:
    """A model with its calibration tokens; statistics are streamed once, when first asked for."""

    model: PreTrainedModel
    input_ids: Tensor
    """(sequences, length), every position a real token."""
    batch_size: int = 8
    """Sequences a forward pass."""
    search_protocol: Protocol | None = None
    """Which tokens are sparse while a method searches; None: all of them."""
    sensitivities: dict[tuple[int, int], dict[str, Tensor]] = field(default_factory=dict, repr=False)
    """Result of `channel_sensitivities` by seed of the drawn labels and sequences; all plans share it."""
    _norms: dict[int, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)
    _statistics: list[BlockStatistics] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        decoder_of(self.model)  # an unsupported family is refused before any work
        if self.input_ids.ndim != 2 or self.input_ids.numel() == 0:
            raise UserError("calibration needs at least one sequence of tokens; give it a longer text")

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

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
        if order not in self._norms:
            self._norms[order] = {
                name: linear.weight.detach().float().norm(order, dim=0)
                for name, linear in model_projections(self.model).items()
            }
        return self._norms[order]

    @property
    def statistics(self) -> list[BlockStatistics]:
        """Activation statistics by block, from one pass over all calibration tokens."""
        if self._statistics is None:
            self._statistics = dense_pass(self.model, self.input_ids, self.batch_size)
        return self._statistics

    @cached_property
    def final_states(self) -> Tensor:
        """Input of the dense model's head, (sequences, length, hidden).

        Asked for before the statistics, both come from one pass; few methods have room or use for this one.
        """
        states: list[Tensor] = []
        self._statistics = dense_pass(self.model, self.input_ids, self.batch_size, states.append)
        return torch.cat(states)

    def search_tokens(self, tokens: int) -> Tensor:
        """The first sequences that together hold `tokens` tokens, shortened where one sequence is longer.

        Returns (rows, length) on the model's device. Raises UserError when there is less text than asked for.
        """
        sequences, length = self.input_ids.shape
        if tokens > sequences * length:
            raise UserError(
                f"the search wants {tokens} calibration tokens but there are {sequences * length}; "
                "raise calibration.sequences or lower the method's search tokens"
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
        if self.search_protocol is None:
            return None
        real = torch.ones_like(input_ids[:1], dtype=torch.bool)
        return self.search_protocol.sparse_positions(real, None)


@torch.inference_mode()
def dense_pass(
    model: PreTrainedModel,
    input_ids: Tensor,
    batch_size: int,
    take_states: Callable[[Tensor], None] | None = None,
) -> list[BlockStatistics]:
    """Histograms and moments of every block from one pass over `input_ids` (sequences, length).

    `take_states` is given what the head reads of each batch, (batch, length, hidden).
    """
    decoder = decoder_of(model)
    blocks, inner = decoder.blocks, decoder.inner
    device = next(model.parameters()).device
    statistics = [BlockStatistics() for _ in blocks]
    handles: list[RemovableHandle] = []
    # One projection of each site stands for all that share its input.
    site_projection = {site: name for name, site in reversed(SITE_OF_PROJECTION.items())}
    for block, collected in zip(blocks, statistics, strict=True):
        for site, name in site_projection.items():
            linear = block.get_submodule(PROJECTION_PATHS[name])
            histogram = ChannelHistogram(linear.in_features, device)
            collected.magnitudes[site] = histogram
            handles.append(linear.register_forward_pre_hook(_input_recorder(histogram)))
        up = block.get_submodule(PROJECTION_PATHS["up"])
        gate_histogram = ChannelHistogram(up.out_features, device)
        collected.magnitudes["gate_activation"] = gate_histogram
        activation = block.get_submodule(GATE_ACTIVATION_PATH)
        handles.append(activation.register_forward_hook(_output_recorder(gate_histogram)))
        handles.append(up.register_forward_hook(_output_recorder(collected.up_output)))
    try:
        for batch in tqdm(input_ids.split(batch_size), desc="calibration", unit="batch", leave=False):
            states = inner(input_ids=batch.to(device), use_cache=False).last_hidden_state
            if take_states is not None:
                take_states(states)
    finally:
        for handle in handles:
            handle.remove()
    return statistics


@torch.inference_mode()
def input_moments(
    model: PreTrainedModel, linears: Mapping[str, nn.Linear], input_ids: Tensor, batch_size: int
) -> dict[str, ChannelMoments]:
    """Moments of some linear layers' inputs, by name, from one pass over `input_ids` (sequences, length)."""
    device = next(model.parameters()).device
    inner = decoder_of(model).inner
    moments = {name: ChannelMoments() for name in linears}
    handles = [
        linear.register_forward_pre_hook(_input_recorder(moments[name])) for name, linear in linears.items()
    ]
    try:
        for batch in input_ids.split(batch_size):
            inner(input_ids=batch.to(device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return moments


def _input_recorder(collector: ChannelHistogram | ChannelMoments) -> Callable[..., None]:
    def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        collector.update(inputs[0])

    return record


def _output_recorder(collector: ChannelHistogram | ChannelMoments) -> Callable[..., None]:
    def record(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        collector.update(output)

    return record
