"""Quantised weights in a safetensors file: what is read is what was written, bit by bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...kernels.quantised.int4 import Int4Weight
from ...kernels.quantised.int8 import Int8Weight
from ...kernels.quantised.stored import StoredWeight
from ...kernels.shared_files import replacing
from ..errors import UserError
from ..quantised_model import QuantisedWeights
from ..seal import seal_of
from ..stored.tensor_files import write_tensors
from .quantisers import Quantiser

METADATA, SEAL = "wisparse_quantised", "content_sha256"
"""Entries of the metadata: description, samples of the weights that were quantised, format and outputs of each
stored one by name; and the hash of that and of all tensors."""


def save_weights(path: Path, found: QuantisedWeights) -> None:
    """Write the weights of a model to one file, which appears complete or not at all."""
    tensors = {
        f"{name}/{part}": tensor.detach().cpu().contiguous()
        for name, weight in found.weights.items()
        for part, tensor in weight.tensors().items()
    }
    document = {
        "description": found.description,
        "weight_samples": dict(found.weight_samples),
        "weights": {
            name: {"format": weight.format, "outputs": weight.shape[1]}
            for name, weight in found.weights.items()
        },
    }
    metadata = {METADATA: json.dumps(document), SEAL: seal_of(document, tensors)}
    with replacing(path) as unfinished:
        write_tensors(tensors, unfinished, metadata)


def load_weights(path: Path, quantiser: Quantiser) -> QuantisedWeights:
    """Weights as `save_weights` wrote them, of a model that this quantiser was used on.

    They say which weights they were made of, and `quantised` refuses any other model. Raises UserError for any
    other file, of a version before among them, which does not say it, and for weights of another quantiser.
    """
    try:
        with safe_open(path, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
            metadata = stored.metadata() or {}
        document = json.loads(metadata[METADATA])
        if metadata[SEAL] != seal_of(document, tensors):
            raise ValueError("it is not what was written")
        weights = {name: _weight(kind, _parts(tensors, name)) for name, kind in document["weights"].items()}
        description, samples = document["description"], document["weight_samples"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{path}: no readable file of quantised weights ({error}); quantise the model anew"
        ) from error
    if description != quantiser.full_description:
        raise UserError(
            f"{path} holds weights in {description}, and quantisation={quantiser.name} makes "
            f"{quantiser.full_description}; take the settings that it was written with"
        )
    return QuantisedWeights(description, weights, quantiser.anew, samples)


def _parts(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {full.rpartition("/")[2]: found for full, found in tensors.items() if full.startswith(f"{name}/")}


def _weight(kind: Mapping[str, str | int], parts: dict[str, Tensor]) -> StoredWeight:
    if kind["format"] == Int8Weight.format:
        return Int8Weight(**parts)
    if kind["format"] == Int4Weight.format:
        return Int4Weight(**{"zeros": None} | parts, outputs=kind["outputs"])
    raise ValueError(f"unknown format {kind['format']}")
