"""The file of a model's folder that holds the routers it was trained with, and samples of its weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ...kernels.plan.whole_plan import of_other_weights
from ...kernels.weight_samples import Samples
from ..errors import UserError
from ..seal import seal_of
from .tensor_files import write_tensors

log = logging.getLogger(__name__)

FILE = "routers.safetensors"
METADATA, SEAL = "wisparse_weight_samples", "content_sha256"
"""Entries of the metadata: samples of the weights that the routers were trained with; the hash of these and of
all tensors, which files of versions before lack."""


def save_routers(folder: Path, weights: Mapping[int, Tensor], model: Samples) -> None:
    """Write the routers (groups, hidden) of a model's blocks beside its weights, which these samples are of."""
    tensors = {str(block): weight.cpu().contiguous() for block, weight in weights.items()}
    metadata = {METADATA: json.dumps(dict(model)), SEAL: seal_of(model, tensors)}
    write_tensors(tensors, folder / FILE, metadata)


def stored_routers(folder: Path, blocks: int, model: Samples) -> list[Tensor]:
    """Routers (groups, hidden) of all blocks.

    model: samples of its weights. Raises UserError where the folder has none of this model, or not what was
    written; warns of a file that does not say whose they are, as those of versions before do not.
    """
    try:
        found = load_file(folder / FILE)
        with safe_open(folder / FILE, "pt") as stored:
            metadata = stored.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{folder} has no readable {FILE}: the model was not trained with routers; make one with "
            "`make train-relu` (llama-mini-lte), or take another method"
        ) from error
    if found.keys() != {str(block) for block in range(blocks)}:
        raise UserError(f"{folder}/{FILE} is not of the model's {blocks} blocks; train the model anew")
    made_of = _made_of(folder / FILE, metadata, found)
    if made_of is None:
        log.warning(
            "%s/%s does not say which weights its routers were trained with: on any others they choose wrongly "
            "without a word; train the model anew to be sure",
            folder,
            FILE,
        )
    elif problem := of_other_weights(f"{folder}/{FILE}", made_of, model):
        raise UserError(problem)
    return [found[str(block)] for block in range(blocks)]


def _made_of(file: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Samples | None:
    """Samples in a file's metadata; None without any. Raises UserError where they are not what was written."""
    if METADATA not in metadata:
        return None
    try:
        found = json.loads(metadata[METADATA])
    except ValueError:
        found = None
    if not isinstance(found, dict) or metadata.get(SEAL) not in (None, seal_of(found, tensors)):
        raise UserError(f"{file} is not what was written; train the model anew")
    return found
