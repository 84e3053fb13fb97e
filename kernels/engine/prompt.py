"""What an engine is asked to continue, checked: a prompt that is padded on the left, and how far it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..errors import KernelError
from ..model.static_cache import StaticCache


@dataclass(frozen=True)
class PreparedPrompt:
    """A prompt as the engine reads it: padded on the left."""

    input_ids: Tensor
    mask: Tensor
    first: Tensor
    """(batch,) first slot of each row that is no padding."""


def prepared(
    input_ids: Any, attention_mask: Any, cache: StaticCache, vocabulary: int, device: torch.device
) -> PreparedPrompt:
    """The prompt of an engine with this cache. Raises KernelError for what is none, or does not fit."""
    if not isinstance(input_ids, Tensor) or input_ids.dtype not in (torch.int64, torch.int32):
        found = input_ids.dtype if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise KernelError(f"a prompt is a tensor of token ids (batch, length) int64, not {found}")
    if input_ids.ndim != 2 or input_ids.shape[0] != cache.batch:
        raise KernelError(
            f"this engine takes prompts of {cache.batch} rows, (batch, length), not {tuple(input_ids.shape)}"
        )
    if not 0 < input_ids.shape[1] < cache.capacity:
        raise KernelError(f"a prompt has 1 to {cache.capacity - 1} tokens, not {input_ids.shape[1]}")
    if input_ids.device != device:
        raise KernelError(f"the prompt is on {input_ids.device}, the model on {device}")
    if ((input_ids < 0) | (input_ids >= vocabulary)).any():
        raise KernelError(f"the prompt has token ids outside of the model's {vocabulary}; is it this model's?")
    mask = _mask(input_ids, attention_mask)
    return PreparedPrompt(input_ids, mask, mask.argmax(dim=1))


def _mask(input_ids: Tensor, attention_mask: Any) -> Tensor:
    """(batch, length) int64, 0 at padding."""
    if attention_mask is None:
        return torch.ones_like(input_ids, dtype=torch.int64)
    if not isinstance(attention_mask, Tensor) or attention_mask.shape != input_ids.shape:
        found = tuple(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask)
        raise KernelError(f"the attention mask is a tensor {tuple(input_ids.shape)} as the ids, not {found}")
    if attention_mask.device != input_ids.device:
        raise KernelError(f"the attention mask is on {attention_mask.device}, the prompt on {input_ids.device}")
    if ((attention_mask != 0) & (attention_mask != 1)).any():
        raise KernelError("the attention mask is 1 at tokens and 0 at padding, and has other values")
    mask = attention_mask.long()
    if (mask.diff(dim=1) < 0).any() or not mask[:, -1].all():
        raise KernelError("prompts are padded on the left; set tokenizer.padding_side='left'")
    return mask


def check_continuation(
    new_tokens: Any, sampler: Any, stop_tokens: Any, pad_token: Any, vocabulary: int
) -> None:
    """Raise KernelError for what is no number of new tokens, no sampler, no token ids to stop at, or none to
    pad with.
    """
    if not _whole(new_tokens) or new_tokens < 1:
        raise KernelError(f"new_tokens={new_tokens!r} is not a whole number of at least 1")
    if sampler is not None and not callable(sampler):
        raise KernelError(
            f"sampler={sampler!r} is no sampler; a function of logits, or None for greedy decoding"
        )
    if not isinstance(stop_tokens, list | tuple | set | frozenset) or not all(map(_whole, stop_tokens)):
        raise KernelError(f"stop_tokens={stop_tokens!r} is no collection of token ids; give [ID, ...] or ()")
    if beyond := [token for token in stop_tokens if not -(2**63) <= token < 2**63]:
        raise KernelError(f"stop_tokens has {beyond[0]}, which is no token id; they are 0 to {vocabulary - 1}")
    if not _whole(pad_token) or not 0 <= pad_token < vocabulary:
        raise KernelError(f"pad_token={pad_token!r} is no token id from 0 to {vocabulary - 1}")


def check_sizes(batch: Any, capacity: Any) -> None:
    """Raise KernelError for what is no number of rows or of tokens that an engine can hold."""
    for name, value in (("batch", batch), ("capacity", capacity)):
        if not _whole(value) or value < 1:
            raise KernelError(f"{name}={value!r} is not a whole number of at least 1")


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
