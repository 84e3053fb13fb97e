"""Gradients through a model one block at a time: the activations of all are never held at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..projections import decoder_of
from ..search.logits import tokens_at_once

LogitSlope = Callable[[Tensor, slice], Tensor]
"""What is sent back: the gradient of a loss by float32 logits (tokens, vocabulary), from these, which may be
overwritten, and their slice of all tokens. Automatic gradients would pass over logits three times as often."""


def backward_through_blocks(
    model: PreTrainedModel, input_ids: Tensor, keywords: list[dict[str, Any]], slope: LogitSlope
) -> None:
    """Send a loss of the predictions for input_ids (rows, length) back through all blocks; hooks do the rest.

    Between the passes only what enters each block is kept, and a block is computed again on the way back: the
    activations of all blocks at once would take more memory than the model. `keywords` as of `block_keywords`.
    """
    decoder = decoder_of(model)
    steps = list(zip(decoder.blocks, keywords, strict=True))
    hidden = decoder.embedding(input_ids)
    entering = []
    with torch.no_grad():
        for block, arguments in steps:
            entering.append(hidden)
            hidden = block(hidden, **arguments)
    gradient = _gradient_at_last_block(model, hidden, slope)
    with torch.enable_grad():
        for block, arguments in reversed(steps):
            # Weights are frozen: the graph begins at what enters the block, and at what hooks bring along.
            entered = entering.pop().detach().requires_grad_()
            torch.autograd.backward(block(entered, **arguments), gradient)
            gradient = entered.grad


def _gradient_at_last_block(model: PreTrainedModel, hidden: Tensor, slope: LogitSlope) -> Tensor:
    decoder, gradients = decoder_of(model), []
    tokens, at_once = hidden.detach().flatten(0, 1), tokens_at_once(model)
    for first in range(0, len(tokens), at_once):
        which = slice(first, first + at_once)
        with torch.enable_grad():
            part = tokens[which].requires_grad_()
            logits = decoder.lm_head(decoder.final_norm(part))
        at_logits = slope(logits.detach().float(), which).to(logits.dtype)
        gradients += torch.autograd.grad(logits, part, at_logits)
    return torch.cat(gradients).view_as(hidden)
