"""Train one model in three sizes, alike: `make train-scaling`.

    python -m wisparse.repro.train.scaling OUTPUT_FOLDER [NAME ...] --tokens 100000000

Writes a folder a model, as `repro.embedded.train` does. Text, tokens, batches and learning rate are the same.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

from ...kernels.program_end import ends_in_one_line
from ...method.errors import mistake
from ..embedded.recipes import RECIPES, Recipe
from ..embedded.train import train_and_save
from ..embedded.training_text import Text
from .command_line import train_named
from .recipes import START

WIDTHS = (160, 320, 640)
SIZES = {f"llama-{width}": width for width in WIDTHS}
"""Width of the residual stream by the model's name; the second has the shapes of `START`."""


def recipe(width: int, tokens: int) -> Recipe:
    """How a size is trained: as `START` was, on other tokens.

    Feed-forward width and heads grow with the width; blocks and channels of a head stay. Raises ValueError for
    a width in which the heads of `START` do not divide as they do there.
    """
    own = RECIPES[START]
    shapes = copy.deepcopy(own.architecture)
    for part in ("intermediate_size", "num_attention_heads", "num_key_value_heads", "hidden_size"):
        grown, rest = divmod(getattr(shapes, part) * width, own.architecture.hidden_size)
        if rest:
            raise ValueError(f"a width of {width} has no whole {part}")
        setattr(shapes, part, grown)
    return dataclasses.replace(own, architecture=shapes, training_tokens=tokens, warmup_steps=100)


def recipe_of(name: str, tokens: int) -> Recipe:
    """How a size is trained, by its model's name."""
    return recipe(SIZES[name], tokens)


def train_size(name: str, tokens: int, text: Text, output: Path, device: str) -> dict[str, object]:
    """Train one size, evaluate the weights as they are stored (bf16) and save them."""
    return train_and_save(name, recipe_of(name, tokens), text, output, device)


@ends_in_one_line(mistake)
def main() -> None:
    """Train every size, or those that are named."""
    train_named(__doc__, SIZES, train_size, recipe_of, tokens=100_000_000)


if __name__ == "__main__":
    main()
