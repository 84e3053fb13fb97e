"""Rows of a batch under a language model: which share a forward pass, and what each continuation scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch

ScoredRow = tuple[list[int], list[int]]
"""Context and continuation of a request."""

NO_TARGET = -1


def sharing_a_pass(rows: Sequence[ScoredRow]) -> list[list[int]]:
    """Indices of rows by the tokens that are read: answers of one token to the same question need one pass."""
    groups: dict[tuple[int, ...] | int, list[int]] = {}
    for index, (context, continuation) in enumerate(rows):
        groups.setdefault(tuple(context) if len(continuation) == 1 else index, []).append(index)
    return list(groups.values())


def row_scores(
    logits: torch.Tensor, targets: torch.Tensor, passes: torch.Tensor
) -> tuple[list[float], list[bool]]:
    """Nats of each row's targets, and whether all of them are the most likely tokens.

    logits: (passes, positions, vocabulary); targets: (rows, positions), NO_TARGET where nothing is scored;
    passes: (rows,) which pass read the row. One transfer for the batch: a wait for the GPU at every row costs
    more than the model.
    """
    targets = targets.to(logits.device)
    scored = targets != NO_TARGET
    row, position = scored.nonzero(as_tuple=True)
    predicted, wanted = logits[passes.to(logits.device)[row], position].float(), targets[scored]
    nats = torch.zeros(targets.shape, dtype=torch.float64, device=logits.device)
    nats[scored] = torch.nn.functional.cross_entropy(predicted, wanted, reduction="none").double()
    missed = torch.zeros_like(scored)
    missed[scored] = predicted.argmax(dim=-1) != wanted
    found = torch.stack([nats.sum(dim=1), missed.sum(dim=1).double()]).cpu()
    return found[0].tolist(), (found[1] == 0).tolist()
