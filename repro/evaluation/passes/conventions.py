"""Conventions of evaluation where checkpoints differ: the same for all of them, and said in records."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ....method.tokens import stop_tokens

if TYPE_CHECKING:
    from ..language_model import SparseLM

log = logging.getLogger(__name__)


def conventions(language_model: SparseLM) -> dict[str, Any]:
    """How texts became tokens and tokens answers so far; ready for JSON. A warning where a text was cut.

    begins_with: the token before every text, null where the tokenizer names none, or asks for none. A document
    has a token before it all the same: bos, or eos where there is no bos. tokenizer_begins_with_it: whether the
    tokenizer, left to its settings, puts it there too.
    requests_cut: how many were longer than `longest` tokens, so that they lost the beginning of their text.
    """
    tokenizer, cut = language_model.tokenizer, language_model.requests_cut
    begin = tokenizer.bos_token_id
    ends = sorted(stop_tokens(language_model.model, tokenizer))
    if cut:
        log.warning(
            "%d requests were longer than %d tokens and lost the beginning of their text",
            cut,
            language_model.max_length,
        )
    return {
        "begins_with": tokenizer.bos_token if language_model.start_tokens else None,
        "documents_begin_with": tokenizer.eos_token if begin is None else tokenizer.bos_token,
        "tokenizer_begins_with_it": begin is not None and tokenizer.encode("x")[:1] == [begin],
        "special_tokens_in_text": "read as special tokens",
        "longest": language_model.max_length,
        "requests_cut": cut,
        "answers": "greedy",
        "answers_end_at": [tokenizer.convert_ids_to_tokens(token) or str(token) for token in ends],
    }
