"""A pass of the dense model over the calibration text, which collects what methods need of it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm
from transformers import PreTrainedModel

from ...kernels.model.held_weights import own_samples
from ..errors import UserError
from ..hooks import hooked
from ..projections import (
    GATE_ACTIVATION_PATH,
    PROJECTION_PATHS,
    SITE_OF_PROJECTION,
    decoder_of,
    key,
    split_key,
)
from ..quantised_model import description_of
from ..seal import seal_of
from .collectors import BlockStatistics, GateStatistics, input_recorder, output_recorder
from .histogram import ChannelHistogram
from .kept_pass import STATES, KeptPass

GATE = "gate_activation"
MEASURED = {
    "attention_input": "the inputs of q, k and v",
    "attention_output": "the inputs of o",
    "mlp_input": "the inputs of gate and up",
    GATE: "the activated outputs of gate",
    "mlp_hidden": "the inputs of down",
}
"""What there are statistics of in a block, in the order in which it computes."""

Need = Literal["statistics", "gate_statistics", "final_states"]
"""What can be collected of the dense model on the calibration text; attributes of `Calibration`."""


@dataclass
class Collected:
    """What passes over the calibration text have collected; what was not asked for is not there."""

    statistics: list[BlockStatistics] = field(default_factory=list)
    """Statistics of every block."""
    gates: list[GateStatistics] = field(default_factory=list)
    """Statistics of every block's neurons."""
    states: list[Tensor] = field(default_factory=list)
    """What the head reads, (sequences, length, hidden): a batch each, one tensor when the pass has ended."""
    seconds: float = 0.0
    """How long it took."""
    batches: int = 0
    """Batches that it is from."""
    of: str = ""
    """Whose weights and which text it is of; see `pass_of`."""

    @property
    def there(self) -> set[Need]:
        """What has been collected."""
        lists: dict[Need, Collection[object]] = {
            "statistics": self.statistics, "gate_statistics": self.gates, "final_states": self.states
        }  # fmt: skip
        return {need for need, found in lists.items() if found}

    def with_more(self, other: Collected) -> Collected:
        """All of this and what another pass over the same text has collected."""
        return Collected(
            self.statistics or other.statistics,
            self.gates or other.gates,
            self.states or other.states,
            self.seconds + other.seconds,
            other.batches,
            other.of,
        )

    def keep_in(self, kept: KeptPass) -> None:
        """Keep what whole passes have collected, if it was much work and is not kept already."""
        if self.seconds >= kept.after and kept.batches < self.batches:
            self.write_to(kept)

    def write_to(self, kept: KeptPass) -> None:
        """Keep what there is by now."""
        kept.write(self.tensors(), self.states, self.batches, self.of, self.seconds)

    def tensors(self) -> dict[str, Tensor]:
        """The statistics by name, as a file holds them."""
        named: dict[str, Tensor] = {}
        for name, histogram in self._histograms():
            named[f"{name}.counts"], named[f"{name}.not_finite"] = histogram.counts, histogram.not_finite
        for block, one in enumerate(self.gates):
            named[f"{block}.up.absolute"] = torch.as_tensor(one.up_output.absolute)
            named[f"{block}.up.squared"] = torch.as_tensor(one.up_output.squared)
            named[f"{block}.up.tokens"] = torch.tensor(one.up_output.tokens)
        return named

    def restore(self, named: Mapping[str, Tensor], device: torch.device) -> None:
        """Take what was kept; the statistics are there and empty."""
        self.states = [named[STATES].to(device)] if STATES in named else []
        for name, histogram in self._histograms():
            histogram.counts = named[f"{name}.counts"].to(device)
            histogram.not_finite = named[f"{name}.not_finite"].to(device)
        for block, one in enumerate(self.gates):
            one.up_output.absolute = named[f"{block}.up.absolute"].to(device)
            one.up_output.squared = named[f"{block}.up.squared"].to(device)
            one.up_output.tokens = int(named[f"{block}.up.tokens"])

    def _histograms(self) -> Iterator[tuple[str, ChannelHistogram]]:
        """All histograms by `BLOCK.SITE`."""
        for block, one in enumerate(self.statistics):
            for site, histogram in one.magnitudes.items():
                yield key(block, site), histogram
        for block, gate in enumerate(self.gates):
            yield key(block, GATE), gate.activation

    def check_finite(self) -> None:
        """Raise UserError for what first is not, in the order in which a model computes."""
        broken = dict(self._histograms())
        if broken:
            counts = torch.stack([histogram.not_finite for histogram in broken.values()]).tolist()
            found = [split_key(name) for name, count in zip(broken, counts, strict=True) if count]
            if found:
                block, site = min(found, key=lambda one: (one[0], list(MEASURED).index(one[1])))
                raise not_finite(f"block {block}: {MEASURED[site]}")
        if not all(states.isfinite().all() for states in self.states):
            raise not_finite("the final states")


def pass_of(model: PreTrainedModel, input_ids: Tensor, batch_size: int) -> str:
    """SHA-256 of all that a pass depends on: the weights as they are loaded, the text and its batches."""
    facts = {"weights": own_samples(model), "quantisation": description_of(model), "batch_size": batch_size}
    return seal_of(facts, {"input_ids": input_ids})


@torch.inference_mode()
def dense_pass(
    model: PreTrainedModel, input_ids: Tensor, batch_size: int, wanted: Collection[Need], kept: KeptPass
) -> Collected:
    """One pass over `input_ids` (sequences, length), in which all that is wanted is collected.

    It goes on from the batches in `kept`, and keeps there what it collects. Raises UserError that names the
    first block and projection whose activations are not finite.
    """
    device, inner = next(model.parameters()).device, decoder_of(model).inner
    batches = input_ids.split(batch_size)
    collected = Collected(of=pass_of(model, input_ids, batch_size))
    before = kept.read(collected.of)
    if set(wanted) <= (held := _needs_in(before)):
        wanted = held  # what goes on is a pass that collects all this
    else:
        before = {}
        kept.begin_anew()
    with ExitStack() as stack:
        if "statistics" in wanted:
            stack.enter_context(hooked(_statistics_hooks(model, collected.statistics)))
        if "gate_statistics" in wanted:
            stack.enter_context(hooked(_gate_hooks(model, collected.gates)))
        if before:
            collected.restore(before, device)
            collected.batches, collected.seconds = kept.batches, kept.seconds
        done, begin = collected.batches, time.perf_counter() - collected.seconds
        for batch in tqdm(
            batches[done:], "calibration", total=len(batches), initial=done, unit="batch", leave=False
        ):
            found = inner(input_ids=batch.to(device), use_cache=False).last_hidden_state
            if "final_states" in wanted:
                collected.states.append(found)
            collected.batches += 1
            collected.seconds = time.perf_counter() - begin
            if collected.batches < len(batches) and kept.is_due():
                collected.write_to(kept)
    collected.check_finite()
    if collected.states:
        collected.states = [torch.cat(collected.states)]
    return collected


def _needs_in(named: Mapping[str, Tensor]) -> set[Need]:
    """What a file's tensors are of."""
    there: set[Need] = set()
    for name in named:
        of_gate = name.split(".")[1:2] in ([GATE], ["up"])
        there.add("final_states" if name == STATES else "gate_statistics" if of_gate else "statistics")
    return there


def not_finite(what: str, where: str = "the calibration text") -> UserError:
    """What is said of numbers that are none."""
    return UserError(
        f"{what} are not finite on {where}; load the model in float32 or bfloat16 (model.dtype), "
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


def _gate_hooks(model: PreTrainedModel, gates: list[GateStatistics]) -> Iterator[RemovableHandle]:
    """Register what fills the statistics of every block's neurons, which are appended."""
    device = next(model.parameters()).device
    for block in decoder_of(model).blocks:
        up = block.get_submodule(PROJECTION_PATHS["up"])
        collected = GateStatistics(ChannelHistogram(up.out_features, device))
        gates.append(collected)
        activation = block.get_submodule(GATE_ACTIVATION_PATH)
        yield activation.register_forward_hook(output_recorder(collected.activation))
        yield up.register_forward_hook(output_recorder(collected.up_output))
