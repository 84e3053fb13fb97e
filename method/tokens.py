"""Texts as sequences of tokens: what every calibration is made of."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from .errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


def pack(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, sequences: int, length: int, source: str
) -> Tensor:
    """Texts as (sequences, length) token ids: each row and each text begins with the begin-of-text token.

    Tokenizers without one (Qwen2.5) get none. Raises UserError when the texts hold too few tokens.
    """
    if sequences < 1 or length < 2:
        raise UserError("calibration.sequences must be at least 1 and calibration.length at least 2")
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    room = length - len(begin)
    stream: list[int] = []
    for text in texts:
        if stream:
            stream.extend(begin)
        stream.extend(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if len(stream) >= sequences * room:
            break
    else:
        raise UserError(
            f"{source} has {len(stream)} tokens, too few for {sequences} sequences of {length}; "
            "give a longer text or lower calibration.sequences"
        )
    return torch.tensor([begin + stream[row * room : (row + 1) * room] for row in range(sequences)])


def docstrings(source: str) -> str:
    """All docstrings of a Python file, one paragraph each."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, documented)]
    return "\n\n".join(filter(None, map(ast.get_docstring, nodes)))
