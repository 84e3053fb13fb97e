"""Weights of a GGUF file: their names in transformers, and their values as safetensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ....method.errors import UserError
from .header import Header, Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FREQUENCIES = "rope_freqs.weight"
"""Not a weight: by how much each frequency of the rotary embedding is divided. `config` reads it."""

SHARD_BYTES = 4 << 30


def checked_names(header: Header, config: PreTrainedConfig) -> dict[str, str]:
    """Name in transformers of every tensor, by its name in the file.

    Raises UserError unless the file has all weights of such a model, of their shapes, and nothing else.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(config).state_dict()
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    architecture = next(key for key, name in MODEL_ARCH_NAMES.items() if name == header.architecture)
    mapping = get_tensor_name_map(architecture, config.num_hidden_layers)
    names = {}
    for name in expected:
        stem, _, kind = name.rpartition(".")
        names[f"{mapping.get_name(stem)}.{kind}"] = name
    found = header.tensors.keys() - {FREQUENCIES}
    title = type(config).model_type
    for what, those in (
        (f"lacks {{}} of the weights of a {title} model", names.keys() - found),
        (f"holds {{}} tensors that a {title} model does not have", found - names.keys()),
    ):
        if those:
            raise UserError(f"{header.file} {what.format(len(those))}, first {min(those)}; take another file")
    for name in sorted(names):
        if header.tensors[name].shape != tuple(expected[names[name]].shape):
            raise UserError(
                f"{header.file}: {name} is of shape {list(header.tensors[name].shape)}, its configuration says "
                f"{list(expected[names[name]].shape)}; take another file"
            )
    return names


def save_weights(header: Header, config: PreTrainedConfig, names: dict[str, str], folder: Path) -> None:
    """Write model.safetensors, or shards with their index, with the values of all tensors."""
    from ....method.stored.tensor_files import write_tensors

    total = sum(_bytes(header.tensors[name]) for name in names)
    if (free := shutil.disk_usage(folder).free) < total:
        raise UserError(
            f"{header.file.name} takes {total / 1e9:.1f} GB as floats, and {folder.parent} has "
            f"{free / 1e9:.1f} GB left; WISPARSE_CACHE=DIR takes another place"
        )
    shards = list(_shards(header, names))
    for number, shard in enumerate(shards, 1):
        weights = {names[name]: _weight(header, config, name) for name in shard}
        file = folder / _shard_name(number, len(shards))
        write_tensors(weights, file, {"format": "pt"})
    if len(shards) > 1:
        files = {
            names[name]: _shard_name(number, len(shards))
            for number, shard in enumerate(shards, 1)
            for name in shard
        }
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def _bytes(tensor: Tensor) -> int:
    return tensor.weights * tensor.dtype.itemsize


def _shards(header: Header, names: dict[str, str]) -> Iterator[list[str]]:
    shard: list[str] = []
    held = 0
    for name in names:
        size = _bytes(header.tensors[name])
        if shard and held + size > SHARD_BYTES:
            yield shard
            shard, held = [], 0
        shard.append(name)
        held += size
    yield shard


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"


def _weight(header: Header, config: PreTrainedConfig, name: str) -> torch.Tensor:
    values = header.values(name)
    if header.architecture == "llama":
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        if count := heads.get(name.split(".")[-2]):
            values = _halves(values, count)
    weight = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32).copy())
    if not all(bound.isfinite() for bound in weight.aminmax()):  # quicker than asking every weight
        raise UserError(f"{header.file}: {name} holds values that are not finite; fetch it again")
    return weight.to(header.tensors[name].dtype)


def _halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k as transformers rotates them, channel i of a head with channel i + half.

    llama.cpp rotates neighbours, so its files of Llama have each head's rows in pairs.
    """
    pairs = rows.reshape(heads, -1, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
