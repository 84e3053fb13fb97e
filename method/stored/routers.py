"""The file of a model's folder that holds the routers it was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError

FILE = "routers.safetensors"


def save_routers(folder: Path, weights: Mapping[int, Tensor]) -> None:
    """Write the routers (groups, hidden) of a model's blocks beside its weights."""
    save_file({str(block): weight.cpu().contiguous() for block, weight in weights.items()}, folder / FILE)


def stored_routers(folder: Path, blocks: int) -> list[Tensor]:
    """Routers (groups, hidden) of all blocks. Raises UserError where the folder has none of this model."""
    try:
        found = load_file(folder / FILE)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder} has no readable {FILE}: the model was not trained with routers; make one with "
            "`make train-relu` (llama-mini-lte), or take another method"
        ) from error
    if found.keys() != {str(block) for block in range(blocks)}:
        raise UserError(f"{folder}/{FILE} is not of the model's {blocks} blocks; train the model anew")
    return [found[str(block)] for block in range(blocks)]
