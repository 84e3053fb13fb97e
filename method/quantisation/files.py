"""Quantised weights in a safetensors file: what is read is what was written, bit by bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...kernels.quantised.int4 import Int4Weight
from ...kernels.quantised.int8 import Int8Weight
from ...kernels.quantised.stored import StoredWeight
from ...kernels.shared_files import file_mode, replacing
from ..errors import UserError

METADATA = "wisparse_quantised"
"""Entry of the metadata: format and outputs of each weight, by name."""


def save_weights(path: Path, weights: Mapping[str, StoredWeight]) -> None:
    """Write weights by name to one file, which appears complete or not at all."""
    tensors = {
        f"{name}/{part}": tensor.detach().cpu().contiguous()
        for name, weight in weights.items()
        for part, tensor in weight.tensors().items()
    }
    kinds = {name: {"format": weight.format, "outputs": weight.shape[1]} for name, weight in weights.items()}
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, metadata={METADATA: json.dumps(kinds)})
        unfinished.chmod(file_mode(unfinished.parent))  # safetensors lets nobody else read what it writes


def load_weights(path: Path) -> dict[str, StoredWeight]:
    """Weights by name as `save_weights` wrote them; raises UserError for any other file."""
    try:
        with safe_open(path, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
            kinds = json.loads((stored.metadata() or {})[METADATA])
        return {name: _weight(kind, _parts(tensors, name)) for name, kind in kinds.items()}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{path}: no readable file of quantised weights ({error}); write it again") from error


def _parts(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {full.rpartition("/")[2]: found for full, found in tensors.items() if full.startswith(f"{name}/")}


def _weight(kind: Mapping[str, str | int], parts: dict[str, Tensor]) -> StoredWeight:
    if kind["format"] == Int8Weight.format:
        return Int8Weight(**parts)
    if kind["format"] == Int4Weight.format:
        return Int4Weight(**{"zeros": None} | parts, outputs=kind["outputs"])
    raise ValueError(f"unknown format {kind['format']}")
