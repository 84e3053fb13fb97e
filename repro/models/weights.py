"""Load the weights of a checkpoint, all of them and no others: what transformers made is compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from ...kernels.errors import KernelError
from ...kernels.model.decoder import check_windows
from ...method.errors import UserError
from ...method.projections import decoder_of
from .tokenizer import brief

ATTENTION = "sdpa"
"""Implementation of attention that every model is loaded with; a config.json does not choose it."""


def load_config(folder: Path) -> PreTrainedConfig:
    """config.json of a folder, as its model is to be built.

    Raises UserError where no model can be built of it.
    """
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        check_windows(config)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION)
    except KernelError as error:
        raise UserError(f"{folder}: {error}") from error
    except Exception as error:  # configurations are checked with errors of many kinds
        raise UserError(
            f"{folder}/config.json describes no model that can be built ({brief(error)}); correct it"
        ) from error
    config._attn_implementation = ATTENTION  # what the file names would go before the argument
    config.output_attentions, config.output_hidden_states, config.return_dict = False, False, True
    return config


def load_weights(folder: Path, config: PreTrainedConfig, dtype: str) -> PreTrainedModel:
    """The model of a folder with a configuration of `load_config`, in main memory.

    Raises UserError for weights that are absent, left over, of another shape, or at odds with what config.json
    ties. Transformers makes up the first, drops the second and warns.
    """
    try:
        with _quiet():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=getattr(torch, dtype),
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except Exception as error:  # files and memory fail with errors of many kinds
        raise UserError(f"{folder}: the weights cannot be loaded ({brief(error)})") from error
    if lacking := sorted(report["missing_keys"]) + sorted(key for key, *_ in report["mismatched_keys"]):
        raise UserError(
            f"{folder}: {len(lacking)} weights are missing or of another shape, first {lacking[0]}; "
            "correct config.json or fetch the checkpoint again"
        )
    # Transformers has already left out what no model reads, such as old checkpoints' rotary frequencies.
    if surplus := sorted(report["unexpected_keys"]):
        raise UserError(
            f"{folder}: {len(surplus)} weights have no place in the model that config.json describes, first "
            f"{surplus[0]}; correct config.json or fetch the checkpoint again"
        )
    _check_tied(model, folder)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without warnings of transformers: what it reports of weights is looked at and refused here."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _check_tied(model: PreTrainedModel, folder: Path) -> None:
    """Refuse a head of its own where config.json ties it: which one is meant, the files do not say."""
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if model.config.tie_word_embeddings and head is not embedding:
        raise UserError(
            f"{folder}: config.json ties lm_head to the embedding, and the weights hold another "
            "lm_head.weight; set tie_word_embeddings to false to use it, or remove it from the weights"
        )


def check_runs(model: PreTrainedModel, name: str) -> None:
    """Raises UserError for sizes that do not fit together, and where tokens attend to later ones.

    Two tokens go through the first block.
    """
    if not getattr(model.config, "is_causal", True):
        raise UserError(
            f"{name}: its configuration sets is_causal to {model.config.is_causal}, and tokens would attend to "
            "later ones, which is not supported; remove it"
        )
    decoder = decoder_of(model)
    if not len(decoder.blocks):
        raise UserError(f"{name} has no blocks; correct num_hidden_layers")
    tokens = torch.zeros(1, 2, dtype=torch.long, device=decoder.embedding.weight.device)
    try:
        with torch.inference_mode():
            hidden = decoder.embedding(tokens)
            angles = decoder.rotary(hidden, torch.arange(2, device=tokens.device)[None])
            decoder.blocks[0](hidden, position_embeddings=angles)
    except RuntimeError as error:
        raise UserError(
            f"{name}: sizes of heads, rotary embedding and hidden states do not fit together ({brief(error)}); "
            "correct its configuration"
        ) from error


def check_finite(model: PreTrainedModel, folder: Path, dtype: str) -> None:
    """Raises UserError that names the first parameter with weights that are infinite or not a number."""
    for name, parameter in model.named_parameters():
        # A sum reads the weights once and is finite where they are; only where it is not, they are looked at.
        if parameter.sum(dtype=torch.float32).isfinite():
            continue
        if wrong := int((~parameter.isfinite()).sum()):
            raise UserError(
                f"{folder}: {wrong} weights of {name} are not finite in {dtype}; "
                "fetch the checkpoint again or use another model.dtype"
            )
