"""Rows of a batch under a language model: which share a forward pass, and what each continuation scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ....method.errors import UserError
from ....method.projections import decoder_of
from ....method.search.logits import tokens_at_once

ScoredRow = tuple[list[int], list[int]]
"""Context and continuation of a request."""

NO_TARGET = -1


class NotFiniteError(UserError):
    """A model gave something that is no number, or infinite; `row` says where in what was asked."""

    def __init__(self, model: PreTrainedModel, row: int, what: str | None = None) -> None:
        advice = "the checkpoint or the plan is broken"
        if model.dtype != torch.float32:
            advice = f"try model.dtype=float32; if that is no better, {advice}"
        asked = f"row {row}" if what is None else what
        super().__init__(f"{asked}: the model's outputs are not finite in {str(model.dtype)[6:]}; {advice}")
        self.model, self.row = model, row


def require_finite(model: PreTrainedModel, values: Sequence[float]) -> None:
    """Raise NotFiniteError for the first value that is nan or infinite."""
    for row, value in enumerate(values):
        if not math.isfinite(value):
            raise NotFiniteError(model, row)


def sharing_a_pass(rows: Sequence[ScoredRow]) -> list[list[int]]:
    """Indices of rows by the tokens that are read: answers of one token to the same question need one pass."""
    groups: dict[tuple[int, ...] | int, list[int]] = {}
    for index, (context, continuation) in enumerate(rows):
        groups.setdefault(tuple(context) if len(continuation) == 1 else index, []).append(index)
    return list(groups.values())


@torch.inference_mode()
def row_scores(
    model: PreTrainedModel, hidden: torch.Tensor, targets: torch.Tensor, passes: torch.Tensor
) -> tuple[list[float], list[bool]]:
    """Nats of each row's targets, and whether all of them are the most likely tokens.

    hidden: (passes, positions, hidden size), what lm_head is given; targets: (rows, positions), NO_TARGET where
    nothing is scored; passes: (rows,) which pass read the row. Logits are made at the scored positions alone:
    for a small model with a large vocabulary all of them are a fifth of the work. One transfer for the batch:
    a wait for the GPU at every row costs more than the model.
    """
    targets, passes = targets.to(hidden.device), passes.to(hidden.device)
    row, position = (targets != NO_TARGET).nonzero(as_tuple=True)
    wanted = targets[row, position]
    # Rows of one pass can be scored at the same position, whose logits are made once.
    places, which = torch.unique(passes[row] * hidden.shape[1] + position, return_inverse=True)
    inputs = hidden.flatten(0, 1)[places]
    step = tokens_at_once(model)
    nats = torch.zeros(targets.shape, dtype=torch.float64, device=hidden.device)
    missed = torch.zeros(targets.shape, dtype=torch.bool, device=hidden.device)
    for begin in range(0, len(inputs), step):
        logits = decoder_of(model).lm_head(inputs[begin : begin + step]).float()
        here = ((which >= begin) & (which < begin + step)).nonzero(as_tuple=True)[0]
        found, answers = logits[which[here] - begin], wanted[here]
        losses = torch.nn.functional.cross_entropy(found, answers, reduction="none")
        nats[row[here], position[here]] = losses.double()
        missed[row[here], position[here]] = found.argmax(dim=-1) != answers
    result = torch.stack([nats.sum(dim=1), missed.sum(dim=1).double()]).cpu()
    return result[0].tolist(), (result[1] == 0).tolist()
