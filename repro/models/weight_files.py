"""Files that hold a checkpoint's weights: one set of them, whole, with every tensor once, as floats."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from ...method.errors import UserError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of safetensors that hold weights; integers and small floats mean nothing without their scales."""


def weight_files(folder: Path, config: dict[str, Any]) -> tuple[Path, ...]:
    """Files of the weights, and their index where there is one.

    Raises UserError where they are missing, truncated or quantised, and where a weight is there twice: which of
    the two is meant, the files do not say, and transformers takes either without a word.
    """
    if named := config.get("transformers_weights"):
        raise UserError(
            f"{folder}: config.json names its weights, transformers_weights={named}, which is not supported; "
            "rename the file to model.safetensors and remove the setting"
        )
    whole, index = folder / WHOLE, folder / INDEX
    if not whole.exists() and not index.exists():
        raise UserError(f"{folder} holds no safetensors weights ({WHOLE} or its index with shards)")
    files, shards = (whole,), _shards(index) if index.exists() else (whole,)
    if not whole.exists():
        files = shards
    elif shards != files:
        raise UserError(
            f"{folder} holds two sets of weights, {WHOLE} and the shards of {INDEX}; take away the one that is "
            "not meant"
        )
    holders: dict[str, Path] = {}
    for path in files:
        for name in check_safetensors(path):
            if (other := holders.setdefault(name, path)) != path:
                raise UserError(
                    f"{folder}: {other.name} and {path.name} both hold {name}; fetch the checkpoint again"
                )
    return files if whole.exists() else (index, *files)


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index, index.parent).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} lists no weights; fetch the checkpoint again")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index} names shards by something else than their names; fetch it again")
    return tuple(index.parent / name for name in sorted(set(weight_map.values())))


def check_safetensors(path: Path) -> list[str]:
    """Names of the tensors of a safetensors file, whose header alone is read.

    Raises UserError when it is missing, truncated or no such file, or holds a tensor that is not of `FLOATS`.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; fetch the checkpoint again")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (header_length,) = struct.unpack("<Q", file.read(8))
            if header_length > size - 8:
                raise ValueError("shorter than its header")
            header = json.loads(file.read(header_length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        types = {name: entry["dtype"] for name, entry in tensors.items()}
        if size != 8 + header_length + end:
            raise UserError(
                f"{path} has {size} bytes, its header says {8 + header_length + end}; fetch it again"
            )
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is truncated or no safetensors file; fetch it again") from error
    if quantised := [name for name in types if types[name] not in FLOATS]:
        raise UserError(
            f"{path} holds {len(quantised)} tensors that are no floats of 16 bits or more, first "
            f"{quantised[0]} of type {types[quantised[0]]}; quantized checkpoints are not supported, take the "
            "unquantized one"
        )
    return list(types)


def read_json(path: Path, folder: Path) -> dict[str, Any]:
    """A JSON object that a checkpoint's folder must hold; raises UserError where it does not."""
    if not path.is_file():
        raise UserError(f"{folder} has no {path.name}; give the folder of a complete checkpoint")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON; fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object; fetch it again")
    return content
