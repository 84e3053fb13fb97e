"""Train SmolLM2-135M on, as `continued` does the embedded model: `make train-relu-real`.

    python -m wisparse.repro.train.continued_real OUTPUT_FOLDER [NAME ...]

Text and learning rate are the embedded model's, batches a quarter of its own,
for SmolLM2's vocabulary is six times as large. What it writes is derived from SmolLM2's weights.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

from hydra import compose
from omegaconf import OmegaConf
from transformers import AttentionInterface, AutoConfig, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ...kernels.program_end import ends_in_one_line
from ...method.errors import mistake
from ..configuration import composing
from ..embedded.recipes import Recipe
from ..embedded.training_text import Text
from ..models.checkpoint import find_checkpoint
from .command_line import train_named
from .continued import FILES, Start, train_from
from .recipes import CONTINUATIONS, recipe

MODEL = "smollm2-135m"
"""Choice of `conf/model`."""
TOKENS = 24_000_000
"""Tokens that each is trained on."""
SMALLER = 4
"""Batches of the embedded model are so many times as large."""
ATTENTION = "sdpa_without_mask"
"""`sdpa`, but never with a mask beside `is_causal`.

In what torch.compile traces, transformers makes a mask even where none is needed, and there is no flash
attention with one.
"""
AttentionInterface.register(ATTENTION, sdpa_attention_forward)


@cache
def start() -> Start:
    """SmolLM2, which is fetched where it is not there. Raises UserError where it cannot be had."""
    with composing():
        chosen = OmegaConf.to_container(compose("config", overrides=[f"model={MODEL}"]).model, resolve=True)
    folder = find_checkpoint(chosen).folder
    return Start(MODEL, folder, AutoTokenizer.from_pretrained(folder), ATTENTION)


def recipe_of(_: str, tokens: int) -> Recipe:
    """How all of them are trained."""
    own = recipe(tokens)
    shapes = AutoConfig.from_pretrained(start().folder)
    return dataclasses.replace(own, architecture=shapes, batch=own.batch // SMALLER)


def train_one(name: str, tokens: int, text: Text, output: Path, device: str) -> dict[str, object]:
    """Train one continuation, evaluate the weights as they are stored (bf16) and save them."""
    return train_from(start(), name, recipe_of(name, tokens), text, output, device)


@ends_in_one_line(mistake)
def main() -> None:
    """Train every continuation, or those that are named."""
    train_named(
        __doc__,
        CONTINUATIONS,
        train_one,
        recipe_of,
        tokens=TOKENS,
        files=FILES,
        start=lambda: start().folder,
        cache="/tmp/wisparse-text-real",
    )


if __name__ == "__main__":
    main()
