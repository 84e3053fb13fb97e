"""The command line of trainings that read their text with the tokenizer of an embedded model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from tokenizers import Tokenizer

from ...kernels.bench.parts.arguments import count
from ..embedded.names import MODELS
from ..embedded.recipes import Recipe
from ..embedded.step_memory import check_memory
from ..embedded.train import check_arguments
from ..embedded.training_text import Text, prepare
from .recipes import START

Training = Callable[[str, int, Text, Path, str], object]
"""Trains and saves a model, given its name, the number of tokens, the text, the folder, and the device."""


def train_named(
    description: str,
    known: Collection[str],
    train: Training,
    recipe_of: Callable[[str, int], Recipe],
    *,
    tokens: int,
    files: int | None = None,
    start: Callable[[], Path] = lambda: MODELS / START,
    cache: str = "/tmp/wisparse-text-continued",
) -> None:
    """Train those of the known models that the command line names, or all, each on as many tokens.

    recipe_of: how a name is trained on a number of tokens. tokens, files, cache: where the command line does
    not say; None: all files. start: folder of the model whose tokenizer reads the text, asked for once training
    is sure to begin.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; all")
    parser.add_argument("--tokens", type=count, default=tokens, help="tokens that each is trained on")
    said = "all" if files is None else str(files)
    parser.add_argument("--files", type=count, default=files, help=f"training files that are taken; {said}")
    parser.add_argument("--text-cache", type=Path, default=Path(cache))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    arguments = parser.parse_args()
    check_arguments(parser, arguments.device, arguments.names, known)
    names = arguments.names or known
    check_memory(parser, arguments.device, (recipe_of(name, arguments.tokens) for name in names))
    tokenizer = Tokenizer.from_file(str(start() / "tokenizer.json"))
    text = prepare(arguments.text_cache, tokenizer, arguments.files)
    torch.set_float32_matmul_precision("high")
    for name in names:
        train(name, arguments.tokens, text, arguments.output, arguments.device)
