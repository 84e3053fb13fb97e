"""Load a tokenizer so that it reads text as the checkpoint's own file says, whatever class its label names."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ...method.errors import UserError
from .weight_files import read_json

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

STORED, SETTINGS = "tokenizer.json", "tokenizer_config.json"
TOKENIZER_FILES = (STORED, "tokenizer.model", "vocab.json")
PROBE = "In 1999 it's x=   42;\n\n\tdef f(n): return n**2  # naïve café — 你好 🙂\r\n  HELLO World's\u00a0end"
"""A text with every kind of character: spaces and newlines alone and in runs, digits, other scripts."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, which reads text as its tokenizer.json does where there is one.

    Transformers builds some classes anew from the vocabulary alone (Llama's, Qwen2's), and the class is chosen
    by tokenizer_config.json or config.json. Where that reads text otherwise than the file, the file is taken:
    the model was trained with it. Raises UserError for a tokenizer that is missing or damaged, or that
    transformers cannot take as it is stored. `add_bos_token: false` of its settings is kept for `begin_tokens`.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"{folder} has no tokenizer (one of {', '.join(TOKENIZER_FILES)}); copy it beside the weights"
        )
    settings = read_json(folder / SETTINGS, folder) if (folder / SETTINGS).is_file() else {}
    tokenizer = _loaded(folder)
    if settings.get("add_bos_token") is False:
        tokenizer.init_kwargs["add_bos_token"] = False
    return tokenizer


def _loaded(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if not (folder / STORED).is_file():
            return loaded
        stored = _stored(folder / STORED)
        if _reads_as(loaded, stored):
            return loaded
        as_stored = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exception on a malformed file
        raise UserError(f"{folder}: the tokenizer cannot be loaded ({brief(error)}); fetch it again") from error
    if not _reads_as(as_stored, stored):
        raise UserError(
            f"{folder}: transformers reads text otherwise than {STORED} says; correct the class and the tokens "
            "that tokenizer_config.json, special_tokens_map.json and added_tokens.json name, or fetch the "
            "tokenizer again"
        )
    log.warning(
        "%s: %s reads text otherwise than %s, which is taken as it is stored",
        folder,
        type(loaded).__name__,
        STORED,
    )
    return as_stored


def check_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raises UserError where a token of the tokenizer, or one that begins or ends texts, has no embedding."""
    rows = model.get_input_embeddings().num_embeddings
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise UserError(
            f"{folder}: the tokenizer has tokens up to {highest}, the model embeds {rows}; "
            "they do not belong together"
        )
    for settings in (model.config, model.generation_config):
        for name in ("bos_token_id", "eos_token_id"):
            named = getattr(settings, name, None)
            for token in named if isinstance(named, list | tuple) else [named]:
                if token is not None and not 0 <= token < rows:
                    raise UserError(
                        f"{folder}: {name} {token} is none of the model's {rows} tokens; correct config.json "
                        "and generation_config.json"
                    )


def brief(error: Exception) -> str:
    """The first line of what an error says."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _stored(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    stored = Tokenizer.from_file(str(file))
    stored.no_truncation()
    stored.no_padding()
    return stored


def _reads_as(loaded: PreTrainedTokenizerBase, stored: Tokenizer) -> bool:
    """Whether both read and write a text alike, behind special tokens too, with the same tokens added.

    An added token is cut out of a text before any other, wherever its letters are: no probe would show it.
    """
    if _added(loaded.added_tokens_decoder) != _added(stored.get_added_tokens_decoder()):
        return False
    if loaded.get_vocab() != stored.get_vocab():
        return False
    special = [str(token) for token in (loaded.bos_token, loaded.eos_token) if token is not None]
    if any(stored.token_to_id(token) is None for token in special):
        return False
    for text in (PROBE, f"  {PROBE} \n", "".join(token + PROBE for token in special)):
        ids = stored.encode(text, add_special_tokens=False).ids
        written = stored.decode(ids, skip_special_tokens=False)
        if loaded.encode(text, add_special_tokens=False) != ids or written != loaded.decode(
            ids, clean_up_tokenization_spaces=False
        ):
            return False
    return True


def _added(tokens: dict[int, AddedToken]) -> dict[int, tuple[str, bool, bool, bool]]:
    """Added tokens by their number: their letters, and what decides where a text is cut."""
    return {
        number: (token.content, token.lstrip, token.rstrip, token.single_word)
        for number, token in tokens.items()
    }
