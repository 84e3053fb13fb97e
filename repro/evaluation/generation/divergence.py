"""How far a sparse model's continuations are from the dense model's, token by token."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ....method.projections import decoder_of
from ..passes.context import Session, announced, reproducible_attention
from ..passes.generation import continued_tokens


@dataclass(frozen=True)
class Continuation:
    """One prompt's continuation by the sparse model beside the dense model's, as many tokens each."""

    first_difference: int
    """Tokens that are the same before the first that differs; all of them where none does."""
    divergence: list[float]
    """KL(dense ‖ sparse) in nats at each of the dense continuation's tokens, which both models read."""
    agreement: list[bool]
    """Whether the sparse model's likeliest token is the dense continuation's."""

    def to_dict(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return asdict(self) | {"divergence": [round(value, 6) for value in self.divergence]}


@torch.inference_mode()
def continuations(
    model: PreTrainedModel,
    session: Session | None,
    dense: Callable[[], AbstractContextManager[Any]],
    prompts: Tensor,
    new_tokens: int,
) -> list[Continuation]:
    """Greedy continuations of prompts (rows, length), none of which ends before `new_tokens`.

    `dense` is a context in which the session's model computes densely. The divergence is taken along the dense
    continuation, which both read: the sparse tokens of the prompt are those of the protocol, all behind it are
    sparse.
    """
    lengths = torch.full((len(prompts),), prompts.shape[1], device=prompts.device)

    def greedy() -> Tensor:
        with announced(session, lengths), reproducible_attention():
            return torch.tensor(continued_tokens(model, prompts, torch.ones_like(prompts), new_tokens))

    def hidden(continuation: Tensor) -> Tensor:
        # In two passes, as it is generated: in one, all of it would be a scored sequence to the protocol.
        inner = decoder_of(model).inner
        with announced(session, lengths), reproducible_attention():
            first = inner(input_ids=prompts, use_cache=True)
            then = inner(
                input_ids=continuation[:, :-1], past_key_values=first.past_key_values, use_cache=True
            ).last_hidden_state
        return torch.cat([first.last_hidden_state[:, -1:], then], dim=1)

    with dense():
        expected = greedy()
        of_dense = hidden(expected.to(prompts.device))
    of_sparse, found = hidden(expected.to(prompts.device)), greedy()
    head = decoder_of(model).lm_head
    results = []
    for row in range(len(prompts)):
        p, q = (head(states[row]).float().log_softmax(dim=-1) for states in (of_dense, of_sparse))
        divergence = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)
        same = (found[row] == expected[row]).tolist()
        results.append(
            Continuation(
                first_difference=same.index(False) if False in same else new_tokens,
                divergence=divergence.tolist(),
                agreement=(q.argmax(dim=-1).cpu() == expected[row]).tolist(),
            )
        )
    return results
