"""Calibration: a model, its calibration text, and the statistics that all methods share."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..kernels.model.held_weights import own_samples
from ..kernels.model.stored_linears import is_taken
from ..kernels.weight_samples import Samples
from .errors import UserError
from .passes.collectors import BlockStatistics, GateStatistics
from .passes.dense_pass import Collected, Need, dense_pass, pass_of
from .passes.kept_pass import NOT_KEPT, KeptPass
from .projections import decoder_of, model_projections, projection_shapes
from .quantised_model import description_of
from .running.acting import check_no_plan, check_not_compiled
from .seal import seal_of
from .settings import check_setting
from .token_policy import TokenPolicy
from .tokens import check_input_ids

Found = TypeVar("Found")

WALKED_AT_ONCE = 5 << 22
"""Numbers of a residual stream that a walk through the blocks holds at once, where a batch has fewer."""


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
    _collected: Collected = field(default_factory=Collected, init=False, repr=False)
    _found: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)
    weight_samples: Samples = field(init=False, repr=False)
    """Samples of the weights that all of this is measured on."""

    def __post_init__(self) -> None:
        check_setting(int, self.batch_size, "batch_size", "batch_size")
        check_not_compiled(self.model)
        if not model_projections(self.model):  # an unsupported family is refused here, before any work
            raise UserError("the model has no blocks, and there is nothing to make sparse")
        self._check_weights()
        check_input_ids(self.input_ids, self.model)
        self.weight_samples, self._quantisation = own_samples(self.model), description_of(self.model)

    def check_same_weights(self) -> None:
        """Raise UserError where the model no longer has the weights that this was measured on."""
        self._check_weights()
        now = own_samples(self.model), description_of(self.model)
        if not (self._collected.there or self._found):  # nothing is measured yet
            self.weight_samples, self._quantisation = now
        elif now != (self.weight_samples, self._quantisation):
            raise UserError(
                "the model's weights, or their quantisation, changed since this calibration was begun; make a "
                "new Calibration of the model as it is"
            )

    @property
    def identity(self) -> str:
        """SHA-256 of all that is measured: weights as they are loaded, text, batches, sparse tokens."""
        facts = {
            "pass": pass_of(self.model, self.input_ids, self.batch_size),
            "sparse": repr(self.search_policy),
        }
        return seal_of(facts, {})

    def _check_weights(self) -> None:
        """Raise UserError where methods would read what the model's linears do not hold, or measure a plan."""
        check_no_plan(self.model, "a calibration")
        if is_taken(self.model):
            raise UserError(
                "an engine reads stored weights of this model, and its linears hold none to make a plan of; "
                "close the engine first"
            )
        if any(parameter.is_meta for parameter in self.model.parameters()):
            raise UserError(
                "weights of this model are put away by a device_map or an offload, and methods read them: load "
                "it whole to make a plan, which may then act on it as it is now"
            )

    def prepare(self, needs: Collection[Need], kept: KeptPass = NOT_KEPT) -> None:
        """Collect what is needed and not there yet, all of it in one dense pass over the calibration text.

        A pass that was cut off goes on from `kept`. What is there in the end is kept too: a search that is cut
        off then finds it.
        """
        self._check_weights()
        there = self._collected.there
        if wanted := set(needs) - there:
            if "statistics" not in there:
                wanted.add("statistics")  # they cost a pass little, and most methods ask for them later
            found = dense_pass(self.model, self.input_ids, self.rows_a_walk(len(self.input_ids)), wanted, kept)
            self._collected = self._collected.with_more(found)
        self._collected.keep_in(kept)

    def rows_a_walk(self, sequences: int) -> int:
        """How many of these sequences a pass without whole logits takes at once: `batch_size`, on a GPU more.

        There it is launches that cost short passes most. Passes are then about as long as one another.
        """
        if self.device.type == "cpu":
            return self.batch_size
        numbers = self.input_ids.shape[1] * self.model.get_input_embeddings().embedding_dim
        at_most = max(self.batch_size, WALKED_AT_ONCE // numbers)
        return math.ceil(sequences / math.ceil(sequences / at_most))

    @property
    def statistics(self) -> list[BlockStatistics]:
        """Activation statistics by block; collected now where `prepare` was not asked for them."""
        self.prepare({"statistics"})
        return self._collected.statistics

    @property
    def gate_statistics(self) -> list[GateStatistics]:
        """Statistics of every block's neurons; collected now where `prepare` was not asked for them."""
        self.prepare({"gate_statistics"})
        return self._collected.gates

    @property
    def final_states(self) -> Tensor:
        """What the dense model's head reads, (sequences, length, hidden); few methods have use for this much.

        Raises RuntimeError before `prepare` was asked for them: a pass of their own is not made unasked.
        """
        if "final_states" not in self._collected.there:
            raise RuntimeError("no final states yet: name 'final_states' in the method's `needs`")
        (states,) = self._collected.states
        return states

    @property
    def activation(self) -> str:
        """What the model calls the activation of gate."""
        return str(getattr(self.model.config, "hidden_act", "activation"))

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
        """‖W[:, i]‖ of that order of every projection, (in,) float32 on `device`; computed once."""

        def norms() -> dict[str, Tensor]:
            # Weights that stream from main memory are normed there; what meets the norms is on `device`.
            return {
                name: linear.weight.detach().float().norm(order, dim=0).to(self.device)
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
