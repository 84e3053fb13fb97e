"""A model under a plan: `sparse` for any call of transformers, `engine` for fast decoding."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from .catalogue import token_policy
from .kernels.engine.decode_engine import DecodeEngine
from .kernels.engine.prompt import check_sizes
from .kernels.engine.sampling import Sampler
from .kernels.errors import KernelError
from .method.errors import UserError
from .method.hooks import hooked
from .method.plan import SparsityPlan
from .method.projections import decoder_of, projection_shapes
from .method.quantised_model import quantisation_of
from .method.running.acting import ENGINE, acting_on, at_rest
from .method.running.apply import SparseSession, applied
from .method.token_policy import GENERATED, TokenPolicy
from .method.tokens import stop_tokens as end_tokens

TOKENS = "half"
"""Default of `conf/config.yaml`: the later half of a prompt is sparse, as where the papers report accuracy."""

CAPACITY = 2048
"""Tokens of prompt and continuation that an engine holds unless told otherwise."""


@contextmanager
def sparse(
    model: PreTrainedModel, plan: SparsityPlan, *, tokens: str | TokenPolicy = TOKENS
) -> Iterator[SparseSession]:
    """Run a model under a plan: within the context every forward pass is sparse, after it dense again.

    tokens: which tokens of a prompt are sparse, a name of `conf/protocol` or a policy; generated tokens are
    sparse under all of them. The session's `report()` has the realised sparsity and the bytes a token. Weights
    are read in full: this is for accuracy, `engine` is for speed. Raises PlanError for a plan of another model,
    and UserError for passes whose rows are no whole batches of a policy's `rows_sharing`.
    """
    if plan is None:
        raise UserError("sparse needs a plan; make one with wisparse.plan, or call the model as it is")
    policy = token_policy(tokens)
    with (
        applied(model, _checked(plan), policy) as session,
        hooked(_refusing_parts_of_batches(model, policy.rows_sharing)),
    ):
        yield session


def _refusing_parts_of_batches(model: PreTrainedModel, together: int) -> Iterator[RemovableHandle]:
    """Have passes refused whose rows do not make whole batches: a part's number would go by a batch's name."""

    def check(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        given = arguments[0] if arguments else keywords.get("input_ids")
        rows = (keywords["inputs_embeds"] if given is None else given).shape[0]
        if rows % together:
            raise UserError(
                f"protocol.rows_sharing={together} rows stand for a batch, and this pass has {rows}; give it "
                f"{together} rows, or a multiple of them"
            )

    # Before the session's own, which would count what is refused.
    yield decoder_of(model).inner.register_forward_pre_hook(check, prepend=True, with_kwargs=True)


def _checked(plan: SparsityPlan) -> SparsityPlan:
    if not isinstance(plan, SparsityPlan):
        raise UserError(f"plan={plan!r} is no plan; make one with wisparse.plan, or read one with load_plan")
    return plan


class Engine:
    """The decode engine of a model under a plan; made by `engine`."""

    def __init__(self, model: PreTrainedModel, plan: SparsityPlan, decoder: DecodeEngine) -> None:
        self._model = model
        self._plan = plan
        self._decoder = decoder
        self._sequences: Tensor | None = None
        self._mask: Tensor | None = None
        self._prompt = 0
        self._seconds = 0.0
        self._new_tokens: list[int] = []
        self._kernels: dict[str, str] = {}
        self._dense = decoder.dense

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        new_tokens: int,
        sampler: Sampler | None = None,
        stop_tokens: Collection[int] | None = None,
        pad_token: int = 0,
    ) -> Tensor:
        """Continue prompts (batch, length), padded on the left, by up to `new_tokens`; greedy without a
        sampler.

        stop_tokens: None for every end-of-text token that the model's configurations name, () for none. No
        other setting of theirs counts, such as a repetition penalty. Returns (batch, length + at most
        new_tokens). A row that met a stop token is filled with `pad_token`. Raises KernelError for what does
        not fit the engine, as a padded prompt without its mask, and for logits that are not finite.
        """
        started = time.perf_counter()
        if attention_mask is None:
            _check_not_padded(input_ids, self._model)
        stops = end_tokens(self._model) if stop_tokens is None else stop_tokens
        sequences = self._decoder.generate(
            input_ids,
            attention_mask,
            new_tokens=new_tokens,
            sampler=sampler,
            stop_tokens=stops,
            pad_token=pad_token,
        )
        if sequences.device.type == "cuda":
            torch.cuda.synchronize(sequences.device)
        self._seconds = time.perf_counter() - started
        self._sequences, self._prompt = sequences, input_ids.shape[1]
        self._mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        self._new_tokens = [_until_stop(row, stops) for row in sequences[:, self._prompt :].tolist()]
        self._kernels = self._decoder.ran()
        return sequences

    @torch.inference_mode()
    def report(self) -> dict[str, Any]:
        """What the last `generate` read, counted by one more pass of the model over its sequences; JSON-able.

        realised_sparsity: share of the block weights that a decode step did not read; bytes_per_token and
        dense_bytes_per_token: weights read by a decode step of all rows; kernels: languages that executed it;
        seconds: of the call, prompt included; new_tokens: of the row that went on longest; new_tokens_by_row:
        without the padding behind a row's stop token. Such a row is fed its padding until the last one stops,
        and what that reads counts. It may be asked for after the engine's context, too. Raises KernelError
        before the first `generate`.
        """
        if self._sequences is None:
            raise KernelError("nothing was generated yet; call generate first")
        rows, length = self._sequences.shape
        policy = replace(GENERATED, rows_sharing=rows)
        # The last token was never read.
        mask = nn.functional.pad(self._mask, (0, length - 1 - self._prompt), value=1)
        with (
            at_rest(self._model),
            applied(self._model, self._plan.without(self._dense), policy) as session,
        ):
            session.prompt_lengths = self._mask.sum(dim=1)
            self._model(
                input_ids=self._sequences[:, :-1],
                attention_mask=mask,
                position_ids=(mask.cumsum(dim=1) - 1).clamp_min(0),
                use_cache=False,
                logits_to_keep=1,
            )
            found = session.report()
        kept = ("realised_sparsity", "bytes_per_token", "dense_bytes_per_token")
        return {name: found[name] for name in kept} | {
            "kernels": self._kernels,
            "new_tokens": length - self._prompt,
            "new_tokens_by_row": self._new_tokens,
            "seconds": self._seconds,
        }


def _check_not_padded(input_ids: Tensor, model: PreTrainedModel) -> None:
    """Raise KernelError for padding that nothing tells from text; `model.generate` would guess a mask there."""
    pad = model.generation_config.pad_token_id
    if pad is None or pad in end_tokens(model) or not isinstance(input_ids, Tensor):
        return
    if bool((input_ids == pad).any()):
        raise KernelError(
            f"the prompt holds the padding token {pad}, and no attention_mask says where it is text; give the "
            "tokenizer's attention_mask"
        )


def _until_stop(tokens: list[int], stops: Collection[int]) -> int:
    """How many tokens there are up to the first that stops, which counts."""
    return next((place for place, token in enumerate(tokens, 1) if token in stops), len(tokens))


@contextmanager
def engine(
    model: PreTrainedModel,
    plan: SparsityPlan | None = None,
    *,
    tokens: str | TokenPolicy = TOKENS,
    batch: int = 1,
    capacity: int | None = None,
    tune: bool = False,
) -> Iterator[Engine]:
    """Decode fast under a plan: the weights of dropped channels are never read. Without a plan all is dense.

    tokens: which tokens of a prompt are sparse, as for `sparse`. capacity: tokens of prompt and continuation;
    None: as many as the model has positions for, at most CAPACITY. tune: fit a GPU's launches to the model's
    shapes and the plan's sparsity (minutes once, then found on disk). Within the context of a quantisation the
    stored weights are read. The weights lie differently within the
    context; after it the model is whole again. Raises KernelError for what the engine cannot execute.
    """
    if plan is not None:
        _checked(plan)
    if capacity is None:
        capacity = min(CAPACITY, decoder_of(model).model.config.max_position_embeddings)
    check_sizes(batch, capacity)
    tuned_for = plan.provenance.sparsity if tune and plan is not None else None
    weights = quantisation_of(model)
    description = None if weights is None else weights.description
    rules = plan or SparsityPlan(shapes=projection_shapes(model), quantisation=description)
    policy = replace(token_policy(tokens), rows_sharing=batch)

    @contextmanager
    def reading_prompts() -> Iterator[None]:
        with at_rest(model), applied(model, rules, policy):
            yield

    with (
        acting_on(model, ENGINE, beside=ENGINE),
        DecodeEngine(
            model,
            plan,
            quantised=weights,
            batch=batch,
            capacity=capacity,
            tuned_for=tuned_for,
            reading_prompts=reading_prompts,
        ) as decoder,
    ):
        yield Engine(model, rules, decoder)
