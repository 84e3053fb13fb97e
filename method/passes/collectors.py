"""What is collected of activations while a dense model reads text, and the hooks that collect it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..hooks import hooked
from ..projections import decoder_of
from ..tokens import check_input_ids
from .histogram import ChannelHistogram


@dataclass
class ChannelMoments:
    """Running mean of |u| and u² for each channel."""

    absolute: Tensor | float = 0.0
    squared: Tensor | float = 0.0
    tokens: int = 0

    def update(self, u: Tensor) -> None:
        """Add activations (..., channels)."""
        u = u.detach().flatten(0, -2).float()
        # Sums are float64: those of float32 would differ with the order in which an instruction set adds.
        self.absolute = self.absolute + u.abs().sum(dim=0, dtype=torch.float64)
        self.squared = self.squared + u.square().sum(dim=0, dtype=torch.float64)
        self.tokens += u.shape[0]

    def mean_absolute(self) -> Tensor:
        """E|u|, (channels,) float64."""
        return self.absolute / self.tokens

    def mean_squared(self) -> Tensor:
        """E[u²], (channels,) float64."""
        return self.squared / self.tokens


class InputProducts:
    """XᵀX of everything that goes into a linear layer."""

    def __init__(self) -> None:
        self.matrix: Tensor | float = 0.0
        """(in, in) float64."""

    def update(self, x: Tensor) -> None:
        """Add inputs (..., in)."""
        x = x.detach().flatten(0, -2).double()
        self.matrix = self.matrix + x.T @ x


@dataclass
class BlockStatistics:
    """Statistics of one block's activations where projections read them."""

    magnitudes: dict[str, ChannelHistogram] = field(default_factory=dict)
    """Histogram of each site: attention_input, attention_output, mlp_input, mlp_hidden."""


@dataclass
class GateStatistics:
    """Statistics of one block's neurons: what their gate lets through, and what up makes of them."""

    activation: ChannelHistogram
    """Magnitudes of the activated outputs of gate."""
    up_output: ChannelMoments = field(default_factory=ChannelMoments)


class InputCollector(Protocol):
    """What is told of every input of a linear layer."""

    def update(self, x: Tensor, /) -> None:
        """Add inputs (..., in)."""


Collector = TypeVar("Collector", bound=InputCollector)


@torch.inference_mode()
def collected_inputs(
    collectors: Mapping[str, Collector],
    linears: Mapping[str, nn.Linear],
    model: PreTrainedModel,
    ids: Tensor,
    batch: int,
) -> Mapping[str, Collector]:
    """Inputs of linear layers in the collector of each, by name: one pass over ids (sequences, length)."""
    check_input_ids(ids, model)
    with hooked(
        linear.register_forward_pre_hook(input_recorder(collectors[name])) for name, linear in linears.items()
    ):
        for some in ids.split(batch):
            decoder_of(model).inner(input_ids=some.to(next(model.parameters()).device), use_cache=False)
    return collectors


def input_recorder(collector: InputCollector) -> Callable[..., None]:
    """Forward pre-hook that gives every input to a collector."""

    def record(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        collector.update(inputs[0])

    return record


def output_recorder(collector: ChannelHistogram | ChannelMoments) -> Callable[..., None]:
    """Forward hook that gives every output to a collector."""

    def record(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        collector.update(output)

    return record
