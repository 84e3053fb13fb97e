"""Texts as sequences of tokens, what every calibration is made of, and tokens as texts."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from .errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def begin_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that every text begins with; none where the tokenizer has none, or a checkpoint asks for none.

    Qwen2.5 has none. `add_bos_token: false` of a tokenizer_config.json is kept by `load_tokenizer`: where there
    is a tokenizer.json, transformers forgets it.
    """
    begin = tokenizer.bos_token_id
    return [] if begin is None or tokenizer.init_kwargs.get("add_bos_token") is False else [begin]


def pack(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, sequences: int, length: int, source: str
) -> Tensor:
    """Texts as (sequences, length) token ids: each row and each text begins as `begin_tokens` says.

    Raises UserError when the texts hold too few tokens.
    """
    if sequences < 1 or length < 2:
        raise UserError(
            f"a calibration of {sequences} sequences of {length} tokens is too small: at least 1 sequence of 2"
        )
    begin = begin_tokens(tokenizer)
    room = length - len(begin)
    stream: list[int] = []
    for text in texts:
        if stream:
            stream.extend(begin)
        # A special token that a text spells is that token, as in evaluation.
        encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=False, verbose=False)
        stream.extend(encoded["input_ids"])
        if len(stream) >= sequences * room:
            break
    else:
        raise UserError(
            f"{source} has {len(stream)} tokens, too few for {sequences} sequences of {length}; "
            "give a longer text or ask for fewer sequences"
        )
    return torch.tensor([begin + stream[row * room : (row + 1) * room] for row in range(sequences)])


def in_turn(texts: Sequence[Tensor]) -> Tensor:
    """Sequences (rows, length) of several texts in one, so that any share of it has its part of every text."""
    places = [
        ((row + 0.5) / len(text), number, row) for number, text in enumerate(texts) for row in range(len(text))
    ]
    return torch.stack([texts[number][row] for _, number, row in sorted(places)])


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> set[int]:
    """Every end-of-text token known to the tokenizer, the configuration or the generation configuration.

    Left out is what a configuration has from its class alone, where the tokenizer has ordinary text there: a
    Llama whose config.json is silent would end at token 2.
    """
    found: set[int] = set()
    for owner in (tokenizer, model.config, model.generation_config):
        stops = getattr(owner, "eos_token_id", None)
        found |= {stops} if isinstance(stops, int) else set(stops or ())
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        default = getattr(type(model.config)(), "eos_token_id", None)
        found -= {default} - set(tokenizer.all_special_ids)
    return found


def continuation_text(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], continuation: Sequence[int]
) -> str:
    """Text that a continuation adds to its prompt, special tokens left out.

    Decoded alone it could lack the space it begins with, which many tokenizers take from the start of a text.
    No tidying of spaces either, which a tokenizer's settings can ask for and which changes code.
    """
    before, whole = (
        tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for tokens in (prompt, [*prompt, *continuation])
    )
    # A prompt that ends within a character is the same up to that one, which the continuation completes.
    pairs = enumerate(zip(before, whole, strict=False))
    return whole[next((index for index, (left, right) in pairs if left != right), len(before)) :]


def check_input_ids(input_ids: Tensor, model: PreTrainedModel) -> None:
    """Raises UserError for what are no (sequences, length) token ids, or are beyond the model's embeddings or
    positions.
    """
    if input_ids.is_meta:
        raise UserError("token ids on the meta device have no values; give them on a CPU or a GPU")
    if input_ids.ndim != 2 or input_ids.numel() == 0 or input_ids.dtype not in (torch.int64, torch.int32):
        raise UserError(
            f"token ids are (sequences, length) int64, not {tuple(input_ids.shape)} {input_ids.dtype}"
        )
    if input_ids.shape[1] < 2:
        raise UserError(
            "sequences of 1 token predict nothing; token ids are (sequences, length), length 2 or more"
        )
    vocabulary = model.get_input_embeddings().num_embeddings
    if wrong := input_ids[(input_ids < 0) | (input_ids >= vocabulary)].tolist():
        raise UserError(
            f"token id {wrong[0]} is outside of the model's {vocabulary} embeddings; "
            "is the tokenizer this model's?"
        )
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and input_ids.shape[1] > longest:
        raise UserError(
            f"sequences of {input_ids.shape[1]} tokens exceed the model's {longest} positions; lower the "
            "length of the calibration text"
        )


def docstrings(source: str) -> str:
    """All docstrings of a Python file, one paragraph each."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    return "\n\n".join(filter(None, map(ast.get_docstring, nodes)))
