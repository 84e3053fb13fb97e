"""What a call of transformers' `generate` is given: its prompt, and settings that a plan cannot go with."""

from __future__ import annotations

from copy import copy
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ..errors import UserError

DOORS = ("generate", "init_continuous_batching")
"""Methods of a model by which it generates; the second is what `generate_batch` begins with."""


def _settings(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """The generation configuration that a call of `generate` is given, or None."""
    return arguments[1] if len(arguments) > 1 else keywords.get("generation_config")


def drafts_itself(model: PreTrainedModel, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    """Whether a call of `generate` has the model's first blocks draft; an error there loses the others."""
    owner = _settings(arguments, keywords) or model.generation_config
    return bool(keywords.get("assistant_early_exit", getattr(owner, "assistant_early_exit", None)))


def uncompiled(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of `generate` by which it compiles nothing: in a configuration, where they have one."""
    settings = copy(_settings(arguments, keywords))
    if settings is None:
        return arguments, keywords | {"disable_compile": True}
    settings.disable_compile = True
    rest = {name: value for name, value in keywords.items() if name != "disable_compile"}
    if len(arguments) > 1:
        return (arguments[0], settings, *arguments[2:]), rest
    return arguments, rest | {"generation_config": settings}


def given_columns(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> int:
    """Columns of the prompt that a call of `generate` is given, those in its cache included."""
    inputs = [*arguments[:1], *(keywords.get(name) for name in ("inputs", "input_ids", "inputs_embeds"))]
    columns = max((given.shape[1] for given in inputs if isinstance(given, Tensor)), default=1)
    mask = keywords.get("attention_mask")
    return columns if mask is None else max(columns, mask.shape[1])


def refuse_batching(model: PreTrainedModel, *arguments: Any, **keywords: Any) -> None:
    """Stand-in for `init_continuous_batching`, which packs prompts: raises UserError.

    A pass of it raises in a thread of its own, where transformers logs the error and returns empty answers.
    """
    raise UserError(
        "generate_batch packs prompts into one row, and a plan's context cannot tell them apart; call "
        "model.generate with a batch of prompts padded on the left"
    )
