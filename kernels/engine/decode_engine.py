"""The decode engine: a transformers model and a plan in, tokens out; dense without a plan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType
from weakref import finalize

import torch
from torch import Tensor, nn

from ..errors import KernelError
from ..model.decoder_weights import (
    NO_BASES_IN_FEW_BITS,
    DecoderWeights,
    linears_of,
    pack,
    unpack,
)
from ..model.held_weights import check_held, check_same_parameters, hold, let_go, own_samples, remember
from ..model.static_cache import StaticCache
from ..model.stored_linears import give_back_linears, is_taken, take_linears
from ..model.uninterrupted import uninterrupted
from ..plan.block_rules import (
    block_rules,
    dense_for_a_batch,
    gated_blocks,
    needed,
    predicted_blocks,
    proxied_blocks,
)
from ..plan.folding import bases_of, folded
from ..plan.rotated_stream import with_rotated_stream
from ..plan.rotating import bases_of_sites, rotated
from ..plan.whole_plan import Plan, of_other_weights
from ..quantised.packed import QuantisedModel
from ..quantised.stored import StoredWeight
from .backends import BACKENDS, STORED_PRODUCTS, DecodeStep, check_decodable
from .prompt import PreparedPrompt, check_continuation, check_sizes, prepared
from .sampling import Greedy, Sampler, chosen, require_finite


def _check_weights(model: nn.Module, plan: Plan | None, quantised: QuantisedModel | None) -> None:
    """Raise KernelError for a plan on weights in other bits than those that are read, and for folded bases.

    Weights in few bits are stored in the model's own bases.
    """
    given = None if quantised is None else quantised.description
    if plan is not None and plan.quantisation != given:
        made, there = (found or "the model's own weights" for found in (plan.quantisation, given))
        raise KernelError(
            f"this plan was made on {made}, and the engine reads {there}; give it the same, or another plan"
        )
    in_bases = bases_of(model) is not None or (plan is not None and plan.folded is not None)
    if quantised is not None and in_bases:
        raise KernelError(NO_BASES_IN_FEW_BITS)


def _check_made_of(model: nn.Module, plan: Plan | None, quantised: QuantisedModel | None) -> None:
    """Raise KernelError for a plan or stored weights that were made of other weights than the model's."""
    made = {"this plan": plan, "what the engine is to read in few bits": quantised}
    there = own_samples(model)
    for what, one in made.items():
        if one is not None and (problem := of_other_weights(what, one.weight_samples, there)):
            raise KernelError(problem)


def _lay_out_again(model: nn.Module) -> None:
    """Lay the model's weights out as before, unless another engine holds none but stored ones."""
    if not is_taken(model):
        unpack(model)


class DecodeEngine:
    """Decodes with a static cache; the weights of dropped channels are never read.

    A context: after it the model's weights lie as before, and the engine's memory is free. Within it the model
    stays usable, on the same weights, and a prompt is read through it. Every generated token is sparse; where
    the rows of a batch would read nearly all of a site, its projections, `dense`, are computed densely.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan | None = None,
        *,
        quantised: QuantisedModel | None = None,
        batch: int = 1,
        capacity: int = 2048,
        tuned_for: float | None = None,
        reading_prompts: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Pack the model's weights and check the plan; capacity: tokens of prompt and continuation.

        quantised: weights in few bits that are read instead of the model's own. The model's passes over prompts
        read them, too, one linear after the other; dequantised ones that it holds are dropped meanwhile.
        tuned_for: the sparsity that a GPU's launches are tuned for (minutes, then found on disk); None: tiles
        that suit a large GPU. reading_prompts: gives the context in which the model reads a prompt, such as
        hooks that compute its tokens sparsely; without it the prompt is dense. Raises KernelError for what
        cannot be executed, and leaves the model as it was.
        """
        check_sizes(batch, capacity)
        blocks = () if plan is None else plan.block_plans()
        stored = None if quantised is None else quantised.weights
        formats = {weight.format: weight.group for weight in (stored or {}).values()}
        _check_weights(model, plan, quantised)
        check_decodable(model, batch, capacity, needed(blocks), formats)
        _check_made_of(model, plan, quantised)
        self.model = model
        self.closed = False
        self._reading_prompts = reading_prompts
        with ExitStack() as undo:
            undo.enter_context(folded(model, bases_of(model) if plan is None else plan.folded))
            undo.enter_context(rotated(model, bases_of_sites(blocks)))
            self.dense = dense_for_a_batch(plan, batch, next(model.parameters()).device)
            weights = self._packed(plan, stored, undo)
            rules = block_rules(plan, weights.shape, weights.device, weights.dtype, self.dense)
            self.weights, self.rules = with_rotated_stream(weights, rules)
            self.cache = StaticCache.for_model(model, weights.shape, batch, capacity)
            self.step: DecodeStep = BACKENDS[weights.device.type](
                self.weights, self.rules, self.cache, tuned_for
            )
            # Once: when it is closed, or when nobody has it any more, so that no model is left without weights.
            self._let_go = finalize(self, undo.pop_all().close)
            self._let_go.atexit = False

    def _packed(
        self, plan: Plan | None, stored: Mapping[str, StoredWeight] | None, undo: ExitStack
    ) -> DecoderWeights:
        """The model's weights laid out for the engine, and `undo` told what lays them out as before."""
        model = self.model
        self._holder = hold(model, "an engine", in_place=True)
        undo.callback(let_go, model, self._holder)
        undo.callback(_lay_out_again, model)
        weights = pack(
            model,
            gated_blocks(plan, self.dense),
            stored,
            predicted_blocks(plan, self.dense),
            proxied_blocks(plan, self.dense),
        )
        if stored is not None:
            products = STORED_PRODUCTS[weights.device.type]()
            take_linears(model, linears_of(model, stored), stored, products)
            undo.callback(give_back_linears, model)
        remember(model)
        return weights

    def __enter__(self) -> DecodeEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lay the model's weights out as before, and drop the engine's; it decodes nothing any more."""
        if self.closed:
            return
        with uninterrupted():
            self.closed = True
            # First, so that no weight is held twice for longer than its copy takes.
            del self.step, self.cache, self.rules, self.weights
            self._let_go()

    def ran(self) -> dict[str, str]:
        """Language of the kernels of each part of a decode step, and what a batch has dense, for records."""
        self._check_open()
        dense = {"dense for the batch": f"{len(self.dense)} projections"} if self.dense else {}
        return self.step.ran() | dense

    def _check_open(self) -> None:
        if self.closed:
            raise KernelError("this decode engine is closed, its context has ended; make another one")

    @torch.inference_mode()
    def prefill(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Read a prompt into the cache.

        input_ids: (batch, length), attention_mask: the same, 0 at padding on the left. Returns the logits of
        the last token, (batch, vocabulary) float32. Raises KernelError for logits that are not finite.
        """
        return self._read(self._prepared(input_ids, attention_mask))

    def _prepared(self, input_ids: Tensor, attention_mask: Tensor | None) -> PreparedPrompt:
        self._check_open()
        check_held(self.model)
        check_same_parameters(self.model, self._holder)
        weights = self.weights
        if torch.is_autocast_enabled(weights.device.type):
            raise KernelError(
                f"autocast is on, and a decode engine computes in {weights.dtype} alone; leave its context, or "
                "load the model in the type that it is for"
            )
        return prepared(input_ids, attention_mask, self.cache, weights.embedding.shape[0], weights.device)

    def _read(self, prompt: PreparedPrompt) -> Tensor:
        from transformers import DynamicCache  # only here: kernels import with torch and triton alone

        cache = DynamicCache()  # not of the model's configuration: a sliding cache would forget early tokens
        positions = (prompt.mask.cumsum(dim=1) - 1).clamp_min(0)
        with self._reading_prompts():
            output = self.model(
                input_ids=prompt.input_ids,
                attention_mask=prompt.mask,
                position_ids=positions,
                past_key_values=cache,
                logits_to_keep=1,
            )
        logits = output.logits[:, -1].float()
        require_finite(logits.amax(), "a logit of the prompt's last token")
        self.cache.fill(cache, prompt.first)
        return logits

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        new_tokens: int,
        sampler: Sampler | None = None,
        stop_tokens: Collection[int] = (),
        pad_token: int = 0,
    ) -> Tensor:
        """Continue a prompt by up to `new_tokens`; a row that met a stop token is filled with `pad_token`.

        Returns (batch, length + at most new_tokens), as `model.generate` does; greedy without a sampler. Raises
        KernelError for what does not fit the engine, and for logits that are not finite.
        """
        prompt = self._prepared(input_ids, attention_mask)
        check_continuation(new_tokens, sampler, stop_tokens, pad_token, self.weights.shape.vocabulary)
        sampler = sampler or Greedy()
        length = input_ids.shape[1]
        if length + new_tokens > self.cache.capacity:
            raise KernelError(
                f"{length} prompt tokens and {new_tokens} new ones do not fit the engine's capacity of "
                f"{self.cache.capacity}; make one with capacity={length + new_tokens}"
            )
        stops = torch.tensor(sorted(stop_tokens), device=input_ids.device)
        running = torch.ones(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        logits = self._read(prompt)
        largest = logits.amax()  # of all steps, left on the device: to read it at each would cost more than it
        tokens = chosen(sampler, logits)
        found = [tokens]
        for _ in range(new_tokens - 1):
            if stop_tokens:
                running &= ~torch.isin(tokens, stops)
                if not running.any():
                    break
            self._check_open()  # a sampler or another thread may have closed it
            logits = self.step(tokens)
            largest = torch.maximum(largest, logits.amax())
            tokens = chosen(sampler, logits).masked_fill(~running, pad_token)
            found.append(tokens)
        require_finite(largest, "a logit of a generated token")
        return torch.cat([input_ids, torch.stack(found, dim=1)], dim=1)
