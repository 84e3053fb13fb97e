"""The text of a training as token ids, and the tokenizer that reads it; kept between runs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ...method.errors import UserError
from .corpus import training_and_held_out_texts
from .recipes import BEGIN_OF_TEXT, VOCABULARY

# Words keep their leading space, digits come in threes, and runs of spaces (indentation) stay whole.
PRE_TOKENIZATION = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
FILES_FOR_TOKENIZER = 3000
HELD_OUT_LENGTH = 512
"""Tokens of a window in which held-out text is read."""


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE of `VOCABULARY` entries."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZATION), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BEGIN_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts[:FILES_FOR_TOKENIZER], trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """One stream of uint16 token ids, each text behind the begin-of-text token."""
    pieces = []
    for start in range(0, len(texts), 2000):
        for encoding in tokenizer.encode_batch(texts[start : start + 2000]):
            pieces.append(np.array([0, *encoding.ids], dtype=np.uint16))
    return np.concatenate(pieces)


Text = tuple[Tokenizer, torch.Tensor, torch.Tensor, dict[str, float]]
"""Tokenizer, training ids, held-out ids and facts on the text."""


def prepare(cache: Path, known: Tokenizer | None = None, files: int | None = None) -> Text:
    """The text of a training; kept in `cache` between runs.

    known: the tokenizer of a model that was trained before; without it one is trained on the text. files:
    training files that are taken, and as large a share of the held-out ones, with a cache of their own; None:
    all. Raises UserError for a cache of another tokenizer than the known one, and for too little held-out text.
    """
    cache = cache if files is None else cache / f"{files}-files"
    if (cache / "facts.json").exists():
        tokenizer = Tokenizer.from_file(str(cache / "tokenizer.json"))
        if known is not None and known.to_str() != tokenizer.to_str():
            raise UserError(
                f"the text in {cache} is of another tokenizer; name another folder: --text-cache DIR"
            )
        facts = json.loads((cache / "facts.json").read_text())
        training, held_out = np.load(cache / "training.npy"), np.load(cache / "held_out.npy")
    else:
        started = time.time()
        training_texts, held_out_texts = training_and_held_out_texts()
        if files is not None and files < len(training_texts):
            held_out_texts = held_out_texts[: -(-len(held_out_texts) * files // len(training_texts))]
            training_texts = training_texts[:files]
        tokenizer = known or train_tokenizer(training_texts)
        training, held_out = encode(tokenizer, training_texts), encode(tokenizer, held_out_texts)
        facts = {
            "training_files": len(training_texts),
            "training_bytes": sum(len(text.encode()) for text in training_texts),
            "training_text_tokens": len(training),
            "held_out_files": len(held_out_texts),
            "held_out_bytes": sum(len(text.encode()) for text in held_out_texts),
            "held_out_tokens": len(held_out),
            "preparation_seconds": round(time.time() - started, 1),
        }
        cache.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(cache / "tokenizer.json"), pretty=False)
        np.save(cache / "training.npy", training)
        np.save(cache / "held_out.npy", held_out)
        (cache / "facts.json").write_text(json.dumps(facts))
    print("text", facts, flush=True)
    if len(held_out) < HELD_OUT_LENGTH:
        raise UserError(f"{len(held_out)} held-out tokens are fewer than a window of {HELD_OUT_LENGTH}")
    as_tensor = [torch.from_numpy(ids.astype(np.int32)) for ids in (training, held_out)]
    return tokenizer, as_tensor[0], as_tensor[1], facts
