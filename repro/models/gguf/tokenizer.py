"""Tokenizer and chat template of a GGUF file, through transformers' reader and then as the file says.

Transformers leaves out what a file states in three places: how SmolLM splits digits, whether a text begins with
the begin token, and that whole words of Llama 3's vocabulary are taken before any merge.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from ....method.errors import UserError
from ..tokenizer import PROBE, load_tokenizer
from .values import TEXT, TRUTH

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

    from .header import Header

LLAMA3 = {"llama3", "llama-v3", "llama-bpe"}
WHOLE_WORDS_FIRST = {*LLAMA3, "tekken"}
"""Vocabularies in which a word that is a token is that token, whatever merges would make of it."""

KNOWN_SPLITS = {
    *WHOLE_WORDS_FIRST,
    "smaug-bpe",
    "qwen2",
    "deepseek-r1-qwen",
    "smollm",
    "gpt-2",
}
"""Ways to split text before merging (`tokenizer.ggml.pre`) that come over."""


def save_tokenizer(header: Header, folder: Path) -> None:
    """Write the file's tokenizer as transformers loads it.

    Raises UserError for a vocabulary whose way to split text is unknown, and where what was saved reads
    otherwise than what was read.
    """
    tokenizer = _read(header)
    tokenizer.save_pretrained(folder)
    again = load_tokenizer(folder)
    if _behaviour(tokenizer) != _behaviour(again):
        raise UserError(
            f"{header.file}: its tokenizer changes when transformers saves it; use the original checkpoint"
        )


def _read(header: Header) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

    kind, split = (header.value(f"tokenizer.ggml.{key}", TEXT) for key in ("model", "pre"))
    _check(header, kind, split)
    try:
        architecture, vocabulary, named = get_gguf_tokenizer(str(header.file))
        backend, _ = convert_gguf_tokenizer(architecture, vocabulary)
    except Exception as error:  # tokenizers raises bare Exception on a vocabulary that does not fit its merges
        brief = " ".join(str(error).split())[:200]
        raise UserError(f"{header.file}: its tokenizer cannot be read ({brief})") from error
    return PreTrainedTokenizerFast(
        tokenizer_object=_as_stated(backend, len(vocabulary["tokens"]), split),
        add_bos_token=_begins(header, kind, split),
        add_eos_token=bool(header.value("tokenizer.ggml.add_eos_token", TRUTH, False)),
        **named,
    )


def _as_stated(backend: Tokenizer, size: int, split: str | None) -> Tokenizer:
    """The same tokenizer with the file's tokens alone, split and merged as its vocabulary was learned."""
    from tokenizers import Tokenizer, pre_tokenizers

    content = json.loads(backend.to_str())
    # Transformers adds its default special tokens to vocabularies that do not have them.
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < size]
    content["model"]["ignore_merges"] = split in WHOLE_WORDS_FIRST
    tokenizer = Tokenizer.from_str(json.dumps(content))
    if split == "smollm":  # every digit alone, then GPT-2's way: a run of spaces before a number stays whole
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    return tokenizer


def _check(header: Header, kind: str | None, split: str | None) -> None:
    for key in ("model", "tokens", *(["merges"] if kind == "gpt2" else [])):
        if f"tokenizer.ggml.{key}" not in header.metadata:
            raise UserError(
                f"{header.file} lacks tokenizer.ggml.{key}, a part of its tokenizer; take another file"
            )
    if kind not in ("gpt2", "llama"):
        raise UserError(f"{header.file}: tokenizers of the kind '{kind}' are not supported in GGUF")
    if kind == "gpt2" and split not in KNOWN_SPLITS:
        raise UserError(
            f"{header.file}: its vocabulary splits text in a way called '{split}', which is not known here; "
            f"known are {', '.join(sorted(KNOWN_SPLITS))}"
        )
    if kind == "llama" and not header.value("tokenizer.ggml.add_space_prefix", TRUTH, True):
        raise UserError(
            f"{header.file}: SentencePiece without a space before the text is not supported in GGUF"
        )


def _begins(header: Header, kind: str | None, split: str | None) -> bool:
    """Whether texts begin with the begin token; where a file does not say so, as llama.cpp takes it."""
    default = kind == "llama" or split in LLAMA3
    begins = header.value("tokenizer.ggml.add_bos_token", TRUTH, default)
    return bool(begins) and "tokenizer.ggml.bos_token_id" in header.metadata


def _behaviour(tokenizer: PreTrainedTokenizerBase) -> tuple[object, ...]:
    """What a tokenizer does: its vocabulary, its special tokens, and a text with every kind of character."""
    special = "".join(map(str, tokenizer.all_special_tokens))
    ids = tokenizer(PROBE + special).input_ids
    return (
        tokenizer.get_vocab(),
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        sorted((index, str(token)) for index, token in tokenizer.added_tokens_decoder.items()),
        ids,
        tokenizer.decode(ids),
        tokenizer.chat_template,
        sys.maxsize if tokenizer.model_max_length > sys.maxsize else tokenizer.model_max_length,
    )
