"""Numbers of a config.json that transformers takes as they are, and computes nonsense with, or ignores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...method.errors import UserError
from .gguf.values import COUNT, POSITIVE, Kind

KINDS: dict[str, Kind] = {
    **dict.fromkeys(
        (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "vocab_size",
            "max_position_embeddings",
            "sliding_window",
            "original_max_position_embeddings",
        ),
        COUNT,
    ),
    **dict.fromkeys(
        (
            "rms_norm_eps",
            "rope_theta",
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "attention_factor",
            "beta_fast",
            "beta_slow",
        ),
        POSITIVE,
    ),
}
"""What each number is to be, where it is given; the later ones are of the rotary embedding."""

OF_OTHERS: dict[str, Any] = {
    **dict.fromkeys(
        (
            "attention_multiplier",
            "attn_logit_softcapping",
            "clip_qkv",
            "dim_model_base",
            "final_logit_softcapping",
            "mup_enabled",
            "no_rope_layers",
            "query_pre_attn_scalar",
            "scale_depth",
            "use_qk_norm",
        )
    ),
    **dict.fromkeys(("embedding_multiplier", "logit_scale", "logits_scaling"), 1),
    **dict.fromkeys(("residual_multiplier", "scale_emb"), 1),
}
"""Settings by which other families scale, cap or turn what those supported do not, and their idle values."""


def check_values(settings: Mapping[str, Any], where: str) -> None:
    """Raises UserError that names the first setting of a configuration that no model can have, or none reads.

    settings: the content of config.json; where: how a user finds it.
    """
    for problem in _problems(settings):
        raise UserError(f"{where}: {problem}; correct it")


def _problems(settings: Mapping[str, Any]) -> Iterator[str]:
    outside = {name: settings[name] for name in ("rope_theta", "partial_rotary_factor") if name in settings}
    given = [settings.get(name) for name in ("rope_scaling", "rope_parameters")]
    inside = next((found for found in given if isinstance(found, dict) and found), {})  # as transformers reads
    for values in (settings, inside):
        yield from _wrong_kinds(values)
    yield from _uneven_heads(settings)
    yield from _unread(outside | inside)
    for name, neutral in OF_OTHERS.items():
        if (value := settings.get(name)) not in (None, False, neutral):
            yield f"{name} is {value!r}, and none of the supported families computes by it"
    if all(isinstance(found, dict) and found for found in given) and given[0] != given[1]:
        yield "rope_scaling and rope_parameters say different things"
    for name in outside.keys() & inside.keys():
        if outside[name] != inside[name]:
            yield f"{name} is {outside[name]} outside of the rotary settings, and {inside[name]} in them"


def _wrong_kinds(values: Mapping[str, Any]) -> Iterator[str]:
    for name, kind in KINDS.items():
        value = values.get(name)
        if value is not None and not kind.holds(value):
            yield f"{name} is {str(value)[:60]!r}, not {kind.title}"


def _uneven_heads(settings: Mapping[str, Any]) -> Iterator[str]:
    heads, groups = settings.get("num_attention_heads"), settings.get("num_key_value_heads")
    if heads and groups and heads % groups:
        yield f"{heads} heads do not share {groups} of keys and values evenly"
    hidden, size = settings.get("hidden_size"), settings.get("head_dim")
    if heads and hidden and size is None:
        if hidden % heads:
            yield f"hidden_size {hidden} is not divided evenly by {heads} heads, and there is no head_dim"
        size = hidden // heads
    if size and size % 2:
        yield f"heads of {size} channels have no halves, which a rotary embedding turns"


def _unread(rotary: Mapping[str, Any]) -> Iterator[str]:
    """What would change the rotary embedding, and is read by none of the supported families."""
    if nested := [name for name, value in rotary.items() if isinstance(value, dict)]:
        yield f"rotary embeddings of their own for {', '.join(nested)} are not supported"
    if (share := rotary.get("partial_rotary_factor")) not in (None, 1):
        yield f"partial_rotary_factor is {share!r}, and the supported models turn whole heads"
    kind = rotary.get("rope_type", rotary.get("type"))
    if kind in (None, "default") and (factor := rotary.get("factor")) not in (None, 1):
        yield f"the rotary embedding has the factor {factor!r} and no rope_type that reads it"
    low, high = rotary.get("low_freq_factor"), rotary.get("high_freq_factor")
    if low is not None and high is not None and not low < high:
        yield f"low_freq_factor {low} is not below high_freq_factor {high}"
