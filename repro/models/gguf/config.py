"""Configuration of a GGUF file as transformers has it: every key comes over, or the file is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ....kernels.model.decoder import FAMILIES
from ....method.errors import UserError
from ..tokenizer import brief
from .header import Header
from .values import COUNT, INDEX, POSITIVE, TEXT, Kind
from .weights import FREQUENCIES

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ARCHITECTURES = {"llama", "qwen2", "qwen3"}
"""Supported names of llama.cpp; it calls a Mistral a llama."""

SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
"""Whole numbers that every file has, and their names in config.json."""

HARMLESS: dict[str, Callable[[Any], bool]] = {
    "vocab_size": lambda value: True,  # the embedding says it
    "rope.scaling.finetuned": lambda value: True,
    "attention.causal": bool,
    "expert_count": lambda value: not value,
    "expert_used_count": lambda value: not value,
    "tensor_data_layout": lambda value: True,  # of q and k; all writers of today pair the rows
}
"""Keys that change nothing where they have such a value."""

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Rotary embedding of Llama 3.1 to 3.3, whose files hold its outcome alone, a divisor for each frequency."""


def configuration(header: Header) -> PreTrainedConfig:
    """config.json of a file; raises UserError for another family or a key that has no place there."""
    from transformers import AutoConfig

    keys = _Keys(header)
    sizes = {there: keys.take(key, COUNT) for key, there in SIZES.items()}
    heads = sizes["num_attention_heads"]
    groups = keys.take("attention.head_count_kv", COUNT, heads)
    if heads % groups:
        raise UserError(f"{header.file}: {heads} heads do not share {groups} of keys and values evenly")
    head_dim = keys.take("attention.key_length", COUNT, sizes["hidden_size"] // heads)
    keys.agree("attention.value_length", head_dim)
    keys.agree("rope.dimension_count", head_dim)
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise UserError(f"{header.file} lacks token_embd.weight, the embedding; take another file")
    family, window = _family(keys, sizes["max_position_embeddings"])
    settings = sizes | {
        "num_key_value_heads": groups,
        "head_dim": head_dim,
        "rms_norm_eps": _shortest(keys.take("attention.layer_norm_rms_epsilon", POSITIVE)),
        "rope_parameters": _rotary(keys, head_dim),
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "hidden_act": "silu",
    }
    if family == "mistral":
        settings["sliding_window"] = window
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        settings[f"{name}_token_id"] = token_id(header, key)
    keys.check_all_taken()
    try:
        return AutoConfig.for_model(family, **settings)
    except Exception as error:  # configurations are checked with errors of many kinds
        raise UserError(f"{header.file}: its sizes are of no {family} model ({brief(error)})") from error


def token_id(header: Header, name: str) -> int | None:
    """Number of a special token, None where there is none; raises UserError where no row embeds it."""
    key = f"tokenizer.ggml.{name}_token_id"
    found: int | None = header.value(key, INDEX)
    rows = header.tensors["token_embd.weight"].shape[0]
    if found is not None and found >= rows:
        raise UserError(f"{header.file}: {key} {found} is none of its {rows} tokens; take another file")
    return found


class _Keys:
    """Keys of a file's architecture, each to be taken once."""

    def __init__(self, header: Header) -> None:
        self.header, self.file = header, header.file
        architecture = header.architecture
        if architecture not in ARCHITECTURES:
            raise UserError(
                f"{header.file}: the model family '{architecture}' is not supported; "
                f"take a model of {', '.join(known.title for known in FAMILIES.values())}"
            )
        prefix = f"{architecture}."
        self._left = {
            key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)
        }

    def take(self, key: str, kind: Kind, default: Any = None) -> Any:
        """A key's value of a kind, or the default; raises UserError where neither is there or blocks differ."""
        value = self._left.pop(key, default)
        if value is None:
            raise UserError(f"{self.file} does not say {key}; take another file")
        if isinstance(value, list):
            raise UserError(f"{self.file}: {key} is another one in each block, which is not supported")
        return kind.check(self.file, key, value)

    def optional(self, key: str, kind: Kind) -> Any:
        """A key's value of a kind, or None."""
        return self.take(key, kind) if key in self._left else None

    def agree(self, key: str, value: int) -> None:
        """Raises UserError where the file has another value."""
        if (found := self.take(key, COUNT, value)) != value:
            raise UserError(
                f"{self.file}: {key} is {found}, and only {value} is supported with its other sizes"
            )

    def check_all_taken(self) -> None:
        """Raises UserError for a key that was neither taken nor is harmless."""
        for key, value in self._left.items():
            if key not in HARMLESS or not HARMLESS[key](value):
                raise UserError(
                    f"{self.file} sets {self.header.architecture}.{key} to {value}, which has no place in the "
                    "models that are supported"
                )


def _family(keys: _Keys, context: int) -> tuple[str, int | None]:
    """The family in transformers, and the sliding window: files of a Mistral differ in their name alone.

    Raises UserError for a window of a Qwen: which of its blocks have it, a file does not say. One of the whole
    context limits nothing, and files of models that leave their window out have such a one.
    """
    architecture = keys.header.architecture
    window = keys.optional("attention.sliding_window", COUNT)
    if architecture != "llama":
        if window is not None and window < context:
            raise UserError(
                f"{keys.file}: a sliding window of {window} in a context of {context} is not supported in "
                f"GGUF files of {architecture} models"
            )
        return architecture, None
    names = [str(keys.header.metadata.get(f"general.{key}", "")) for key in ("name", "basename")]
    is_mistral = window is not None or any("mistral" in name.lower() for name in names)
    return ("mistral" if is_mistral else "llama"), window


def _rotary(keys: _Keys, head_dim: int) -> dict[str, Any]:
    theta = _shortest(keys.take("rope.freq_base", POSITIVE, 10000.0))
    linear = keys.optional("rope.scale_linear", POSITIVE)  # of older files
    factor = keys.optional("rope.scaling.factor", POSITIVE) or linear
    # llama.cpp divides by a factor whose kind is not named, and by none where the kind is "none".
    kind = keys.take("rope.scaling.type", TEXT, "none" if factor in (None, 1) else "linear")
    original = keys.optional("rope.scaling.original_context_length", COUNT)
    if FREQUENCIES in keys.header.tensors:
        if kind != "none":
            raise UserError(f"{keys.file} scales its rotary embedding twice, by {kind} and by {FREQUENCIES}")
        return {"rope_theta": theta, **_llama3(keys.header, theta, head_dim)}
    if kind == "none":
        return {"rope_type": "default", "rope_theta": theta}
    if factor is None:
        raise UserError(f"{keys.file} scales its rotary embedding without a factor; take another file")
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": _shortest(factor)}
    if kind == "yarn" and original:
        scaling = {"factor": _shortest(factor), "original_max_position_embeddings": original}
        return {"rope_type": "yarn", "rope_theta": theta, **scaling}
    raise UserError(f"{keys.file}: rotary embeddings scaled by '{kind}' are not supported in GGUF")


def _llama3(header: Header, theta: float, head_dim: int) -> dict[str, Any]:
    """Parameters whose divisors are the file's; raises UserError where Llama 3's do not give them."""
    divisors = header.values(FREQUENCIES).astype(np.float64)
    factor = _shortest(divisors.max())
    if divisors.shape == (head_dim // 2,) and np.allclose(
        divisors, _divisors(theta, head_dim, factor), rtol=1e-5
    ):
        return {"rope_type": "llama3", "factor": factor, **LLAMA3}
    raise UserError(
        f"{header.file}: the frequencies in {FREQUENCIES} are not those of Llama 3.1 to 3.3; "
        "other scaled ones are not supported in GGUF"
    )


def _divisors(theta: float, head_dim: int, factor: float) -> np.ndarray:
    """What Llama 3 divides each frequency by: long waves by the factor, short ones by 1, between them mixed."""
    waves = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high, context = LLAMA3.values()
    kept = np.clip((context / waves - low) / (high - low), 0, 1)
    return 1 / ((1 - kept) / factor + kept)


def _shortest(value: float) -> float:
    """The shortest number that is the same in float32, in which files keep it: 1e-05, not 9.99999975e-06."""
    return float(str(np.float32(value)))
