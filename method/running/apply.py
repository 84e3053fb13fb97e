"""Execute a plan on a transformers model: a context manager that hooks the projections, and counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ...kernels.model.held_weights import check_held, own_samples
from ..errors import UserError
from ..hooks import hooked
from ..plan import SparsityPlan
from ..projections import (
    GATE_ACTIVATION_PATH,
    decoder_blocks,
    decoder_of,
    key,
    model_projections,
    projection_shapes,
    split_key,
)
from ..quantised_model import description_of
from ..rotation import folded_into, rotated
from ..token_policy import TokenPolicy
from .acting import ENGINE, PLAN, acting_on, compiled_anew
from .generate_calls import DOORS, drafts_itself, given_columns, refuse_batching, uncompiled
from .head_hooks import check_heads, on_heads
from .projection_hooks import ProjectionHooks
from .proxy_hooks import on_proxies
from .router_hooks import on_router
from .sign_hooks import on_signs
from .traffic import TrafficCounter


class SparseSession:
    """A model under a plan and a token policy: tells the hooks which tokens are sparse, and reports traffic."""

    def __init__(
        self,
        model: PreTrainedModel,
        plan: SparsityPlan,
        policy: TokenPolicy,
        counter: TrafficCounter,
    ) -> None:
        self.prompt_lengths: Tensor | None = None
        """(rows,) real tokens of each row that are prompt, for the next forward passes.

        None: all tokens of a pass without a cache. Inside of `model.generate` the prompt is what it was given.
        """
        self._prompt_columns: int | None = None
        """Length of what `model.generate` was given, padding included, while it runs."""
        self._read_to = 0
        """Column behind the last that it has read."""
        self.rows_sharing = policy.rows_sharing
        """Rows of a forward pass that stand for a batch; passes best have a multiple of them."""
        self._policy = policy
        self._counter = counter
        self._only: tuple[int, ...] | None = None
        self._hooks = [ProjectionHooks(counter, policy.rows_sharing) for _ in decoder_blocks(model)]
        self._model, self._plan = model, plan
        self._placed = _placed(model)

    def hooks(self) -> Iterator[RemovableHandle]:
        """Register all hooks of the plan on the model."""
        decoder, linears = decoder_of(self._model), model_projections(self._model)
        device, dtype = self._placed
        for block, heads in self._plan.heads.items():
            check_heads(self._model.config, block, heads)
            rule, ruled = heads.to(device, dtype), key(block, "o") in self._plan.rules
            yield from on_heads(block, decoder.blocks[block], rule, self._hooks[block], self._counter, ruled)
        for name, rule in self._plan.rules.items():
            yield from self._hooks[split_key(name)[0]].on_projection(
                name, linears[name], rule.to(device, dtype)
            )
        for block, thresholds in self._plan.gate_thresholds.items():
            activation = decoder.blocks[block].get_submodule(GATE_ACTIVATION_PATH)
            name = f"{block}.gate_activation"
            yield from self._hooks[block].on_gate(name, activation, thresholds.to(device))
        for block, rule in self._plan.signs.items():
            yield from on_signs(block, decoder.blocks[block], rule.to(device), self._hooks[block])
        for block, proxies in self._plan.proxies.items():
            yield from on_proxies(block, decoder.blocks[block], proxies, self._hooks[block])
        for block, router in self._plan.routers.items():
            yield from on_router(block, decoder.blocks[block], router.to(device, dtype), self._hooks[block])

        # On the inner decoder, so that callers who leave lm_head out are covered too.
        before = _BeforePass(self, decoder.inner)
        yield decoder.inner.register_forward_pre_hook(before, with_kwargs=True)

    @contextmanager
    def only_blocks(self, *blocks: int) -> Iterator[None]:
        """Context in which every token is dense in all other blocks.

        Without a block the model is dense, and what it reads does not count.
        """
        before, self._only = self._only, blocks
        try:
            yield
        finally:
            self._only = before

    def report(self) -> dict[str, Any]:
        """Realised sparsity and bytes read per token over everything run so far; JSON-able."""
        return self._counter.report()

    @contextmanager
    def observed_generation(self) -> Iterator[None]:
        """Context in which `model.generate` tells this session how long its prompt is.

        A forward pass cannot: a prompt may be read in chunks or behind an earlier turn's cache, candidates of
        assisted generation come several at a time, and without a cache every pass reads everything again.
        Nothing is compiled there: what was compiled before goes on without hooks. Raises UserError where the
        model drafts for itself, and for `generate_batch`, which logs a refusal and returns empty answers.
        """
        model = self._model
        before = {name: vars(model)[name] for name in DOORS if name in vars(model)}
        original = model.generate

        @wraps(original)
        def generate(called: PreTrainedModel, *arguments: Any, **keywords: Any) -> Any:
            _check_no_copy(called is model)
            if self._prompt_columns is not None or drafts_itself(model, arguments, keywords):
                raise UserError(
                    "within generate the model would draft for itself, and its drafts would count as what it "
                    "reads; leave out assistant_early_exit, or take another model as assistant_model"
                )
            self._prompt_columns, self._read_to = given_columns(arguments, keywords), 0
            arguments, keywords = uncompiled(arguments, keywords)
            try:
                return original(*arguments, **keywords)
            finally:
                self._prompt_columns = None

        for name, door in zip(DOORS, (generate, refuse_batching), strict=True):
            setattr(model, name, MethodType(door, model))  # which a copy of the model has as its own
        try:
            yield
        finally:
            for name in DOORS:
                delattr(model, name)
            for name, method in before.items():
                setattr(model, name, method)

    def _before_forward(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            door = "jit.trace" if torch.jit.is_tracing() else "export"
            raise UserError(
                f"torch.{door} would write down which channels the example's tokens "
                "drop, for all others; do so before or after the plan's context, or try torch.compile within it"
            )
        check_held(self._model)
        if (now := _placed(self._model)) != self._placed:
            raise UserError(
                f"the model was moved within the plan's context, from {_named(self._placed)} to {_named(now)}; "
                "move it before or after"
            )
        inputs = arguments[0] if arguments else keywords.get("input_ids")
        if inputs is None:
            inputs = keywords["inputs_embeds"]
        rows, length = inputs.shape[:2]
        cache = keywords.get("past_key_values")
        read = 0 if cache is None else int(cache.get_seq_length())
        mask = keywords.get("attention_mask")
        if mask is None:
            seen = torch.ones(rows, read + length, dtype=torch.bool, device=inputs.device)
        elif isinstance(mask, Tensor) and mask.ndim == 2:
            # A mask of the new tokens alone says that all before them are real.
            lacking = max(0, read + length - mask.shape[1])
            seen = nn.functional.pad(mask.bool(), (lacking, 0), value=True)[:, : read + length]
        else:
            raise UserError(
                "token policies need a (rows, length) attention mask; pass the 2-D mask or none, and leave out "
                "a cache_implementation of generate that makes others"
            )
        past, real = seen[:, :read].sum(dim=1), seen[:, read:]
        if mask is None and cache is None:
            self._check_not_packed(keywords.get("position_ids"))
        self._check_one_prompt(read, read + length, cache is not None or bool(keywords.get("use_cache")))
        sparse = self._sparse_positions(real, past, seen, read)
        dense = torch.zeros_like(sparse)
        for block, hooks in enumerate(self._hooks):
            hooks.sparse_positions = sparse if self._only is None or block in self._only else dense
        if self._only == ():  # a dense pass to compare with is none of the plan's
            real = sparse = dense
        self._counter.add_tokens(real, sparse)

    def _check_not_packed(self, positions: Tensor | None) -> None:
        """Raise UserError for texts that share a row, which their positions alone tell apart."""
        dense = self._policy.needs_length or self._policy.dense_tokens
        if dense and positions is not None and bool((positions.diff(dim=-1) != 1).any()):
            raise UserError(
                "position_ids begin anew within a row, and a token policy takes a row for one text; give each "
                "text a row of its own, or take tokens='all'"
            )

    def _check_one_prompt(self, first: int, end: int, cached: bool) -> None:
        """Raise UserError for a pass of `model.generate` over another prompt than its own."""
        if (columns := self._prompt_columns) is None:
            return
        again = first < columns if cached else end <= self._read_to
        if self._read_to >= columns and again:
            raise UserError(
                "within generate the model reads a second prompt, and nothing says which of its tokens are "
                "sparse; leave out guidance_scale, or whatever else calls the model meanwhile"
            )
        self._read_to = end

    def _sparse_positions(self, real: Tensor, past: Tensor, seen: Tensor, read: int) -> Tensor:
        """(rows, length) of the policy; what is prompt is a number of tokens, whatever passes read them."""
        columns, prompt_lengths = self._prompt_columns, self.prompt_lengths
        if columns is not None:
            given = columns - (~seen[:, :columns]).sum(dim=1)
            prompt = self._policy.sparse_positions(real[:, : max(0, columns - read)], given, past)
            return torch.cat([prompt, real[:, prompt.shape[1] :]], dim=1)
        if prompt_lengths is None and read:
            if real.shape[1] > 1 and self._policy.needs_length:
                raise UserError(
                    "several tokens follow a cache, and nothing says which of them are prompt: set the "
                    "session's prompt_lengths, or call model.generate"
                )
            prompt_lengths = past  # one token behind a cache is a generated one
        return self._policy.sparse_positions(real, prompt_lengths, past)


class _BeforePass:
    """The hook that tells a session of a forward pass; a copy of the model has this very one."""

    def __init__(self, session: SparseSession, inner: nn.Module) -> None:
        self._session, self._inner = session, inner

    def __call__(self, inner: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        _check_no_copy(inner is self._inner)
        self._session._before_forward(arguments, keywords)

    def __deepcopy__(self, _: dict[int, Any]) -> _BeforePass:
        # A copied session would know nothing of what the other hooks, which are functions, know of this one.
        return self

    def __reduce__(self) -> str:
        raise UserError(
            "a plan acts on this model, and its hooks cannot be stored or sent to another process; call "
            "torch.save, pickle or the like before or after that context, or save_pretrained"
        )


def _check_no_copy(own: bool) -> None:
    """Raise UserError for a copy, which has the hooks of a context and keeps them when that has ended."""
    if not own:
        raise UserError(
            "this model was copied within a plan's context, and would be sparse as the other one last was; "
            "copy it before or after"
        )


def _placed(model: PreTrainedModel) -> tuple[torch.device, torch.dtype]:
    """Where a model is, and the type of its activations, whatever its projections store."""
    return next(model.parameters()).device, model.get_input_embeddings().weight.dtype


def _named(placed: tuple[torch.device, torch.dtype]) -> str:
    return f"{placed[0]} in {str(placed[1]).removeprefix('torch.')}"


@contextmanager
def applied(
    model: PreTrainedModel,
    plan: SparsityPlan,
    policy: TokenPolicy,
    counting: type[TrafficCounter] = TrafficCounter,
) -> Iterator[SparseSession]:
    """Run a model under a plan: within the context its forward passes are sparse, after it dense again.

    `counting`: what counts for the session's report. Raises PlanError when the plan was made for a model of
    other shapes or other weights, quantised or not, and UserError where another plan acts on the model, or
    torch.compile has compiled it.
    """
    with acting_on(model, PLAN, beside=ENGINE):  # an engine reads its prompts under its plan
        plan.check_model(projection_shapes(model))
        plan.check_quantisation(description_of(model))
        plan.check_weights(own_samples(model))
        session = SparseSession(model, plan, policy, counting(model, plan, policy.rows_sharing))
        with (
            folded_into(model, plan.folded),
            rotated(model, plan.rotations, plan.gains_kept),
            hooked(session.hooks()),
            session.observed_generation(),
            compiled_anew(decoder_of(model).inner, *decoder_blocks(model)),
        ):
            yield session
