"""Conventions of evaluation where checkpoints differ: the same for all of them, and said in records."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ....method.tokens import stop_tokens

TODAY = datetime(2024, 7, 26)
"""What a chat template is told that asks for the date; Llama 3.1's own names this day where it cannot ask."""


def conventions(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """How `SparseLM` makes tokens of texts and answers of tokens; ready for JSON.

    begins_with: the token before every text, null where the tokenizer names none; a document begins with the
    eos token then. tokenizer_begins_with_it: whether the tokenizer, left to its settings, puts it there too.
    """
    begin = tokenizer.bos_token_id
    ends = sorted(stop_tokens(model, tokenizer))
    return {
        "begins_with": tokenizer.bos_token,
        "documents_begin_with": tokenizer.eos_token if begin is None else tokenizer.bos_token,
        "tokenizer_begins_with_it": begin is not None and tokenizer.encode("x")[:1] == [begin],
        "special_tokens_in_text": "read as special tokens",
        "answers": "greedy",
        "answers_end_at": [tokenizer.convert_ids_to_tokens(token) or str(token) for token in ends],
    }
