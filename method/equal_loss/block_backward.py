"""Gradients through a model one block at a time, so that the activations of all need not be held at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..projections import decoder_of
from ..search.logits import tokens_at_once

KEPT_OF_FREE = 0.5
"""Share of a GPU's free memory that may hold what autograd keeps of all blocks."""
LogitSlope = Callable[[Tensor, slice], Tensor]
"""What is sent back: the gradient of a loss by float32 logits (tokens, vocabulary), from these, which may be
overwritten, and their slice of all tokens. Automatic gradients would pass over logits three times as often."""


def backward_through_blocks(
    model: PreTrainedModel, input_ids: Tensor, keywords: list[dict[str, Any]], slope: LogitSlope
) -> None:
    """Send a loss of the predictions for input_ids (rows, length) back through all blocks; hooks do the rest.

    Weights are frozen: gradients are of what hooks see. Between the passes what enters each block is kept, and
    blocks are computed again on the way back; where a GPU has the memory, what autograd needs of them is kept.
    `keywords` as of `block_keywords`.
    """
    decoder = decoder_of(model)
    hidden, held = decoder.embedding(input_ids).detach(), []
    kept = _MemoryOfBlocks(hidden.device, len(decoder.blocks))
    for block, arguments in zip(decoder.blocks, keywords, strict=True):
        with torch.set_grad_enabled(kept.has_room):
            entered = hidden.detach().requires_grad_(kept.has_room)
            hidden = block(entered, **arguments)
        held.append((block, arguments, entered, hidden if kept.has_room else None))
        kept.look()
    gradient = _gradient_at_last_block(model, hidden.detach(), slope)
    while held:
        block, arguments, entered, left = held.pop()
        with torch.enable_grad():
            if left is None:
                left = block(entered.requires_grad_(), **arguments)
            torch.autograd.backward(left, gradient)
        gradient = entered.grad


class _MemoryOfBlocks:
    """Says whether a GPU holds what autograd keeps of all blocks, from what it keeps of the first."""

    def __init__(self, device: torch.device, blocks: int) -> None:
        self._device, self._blocks = device, blocks
        self.has_room = device.type == "cuda"
        """Whether what is computed next may be kept; on a CPU it would be read from beyond the caches."""
        self._before = torch.cuda.memory_allocated(device) if self.has_room else None

    def look(self) -> None:
        """Measure the first block; all would have to fit into a half of what is free."""
        if self._before is not None:
            allocated = torch.cuda.memory_allocated(self._device)
            free = torch.cuda.mem_get_info(self._device)[0]
            free += torch.cuda.memory_reserved(self._device) - allocated
            self.has_room = (allocated - self._before) * self._blocks < KEPT_OF_FREE * free
            self._before = None


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
