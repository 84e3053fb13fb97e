"""Weights: all of the checkpoint's and no others, finite, tied as the files say, under one attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from logging import Handler
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging
from wisparse.method.errors import UserError
from wisparse.repro.models.checkpoint import find_checkpoint, load_model
from wisparse.repro.models.weights import check_finite, load_config, load_weights

from .test_models import settings
from .test_tokenizer import edit

UP = "model.layers.3.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the weights and store them in one file."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_model(find_checkpoint(settings(folder)))
    assert "\n" not in str(caught.value)


def weights(folder: Path) -> PreTrainedModel:
    return load_weights(folder, load_config(folder), "float32")


def test_weights_that_are_absent_are_never_made_up(checkpoint):
    rewrite(checkpoint, lambda tensors: tensors.pop(UP))
    refused(checkpoint, r"1 weights are missing.*layers\.3\.mlp\.up_proj")


def test_weights_of_another_shape_are_named(checkpoint):
    """Transformers said that a table above had the details, which nobody saw."""
    rewrite(checkpoint, lambda tensors: tensors.update({UP: tensors[UP][:-1].clone()}))
    refused(checkpoint, r"1 weights are missing or of another shape, first model\.layers\.3\.mlp\.up_proj")


def test_weights_that_the_model_does_not_take_are_never_dropped(checkpoint):
    biases = {f"model.layers.{block}.self_attn.q_proj.bias": torch.ones(320) for block in range(8)}
    rewrite(checkpoint, lambda tensors: tensors.update(biases))
    refused(checkpoint, r"8 weights have no place .*layers\.0\.self_attn\.q_proj\.bias; correct config\.json")


def test_a_refusal_of_weights_is_all_that_is_said(checkpoint, monkeypatch):
    """Transformers would add a table, and that what is unexpected can be ignored."""
    rewrite(checkpoint, lambda tensors: tensors.update({f"{UP}_more": tensors[UP].clone()}))
    library, said = logging.get_logger(), Handler()
    monkeypatch.setattr(said, "emit", lambda record: pytest.fail(record.getMessage()))
    before = logging.get_verbosity()
    library.addHandler(said)
    try:
        refused(checkpoint, "1 weights have no place in the model")
    finally:
        library.removeHandler(said)
    assert logging.get_verbosity() == before


def test_rotary_frequencies_of_old_checkpoints_do_no_harm(checkpoint):
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}
    rewrite(checkpoint, lambda tensors: tensors.update(frequencies))
    assert len(weights(checkpoint).model.layers) == 8


def test_fewer_blocks_than_there_are_weights_of_are_refused(checkpoint):
    edit(checkpoint / "config.json", num_hidden_layers=7)
    refused(checkpoint, r"9 weights have no place .*layers\.7\.")


def test_another_head_beside_a_tied_embedding_is_refused(checkpoint):
    """Transformers loads it untied and warns; lm-eval would tie it, in the shared model."""
    rewrite(checkpoint, lambda tensors: tensors.update({"lm_head.weight": tensors[EMBEDDING] * 0.5}))
    refused(checkpoint, r"ties lm_head to the embedding, .*another lm_head\.weight; set tie_word_embeddings")
    edit(checkpoint / "config.json", tie_word_embeddings=False)
    model = weights(checkpoint)
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight * 0.5)


def test_the_same_head_beside_a_tied_embedding_is_one(checkpoint):
    rewrite(checkpoint, lambda tensors: tensors.update({"lm_head.weight": tensors[EMBEDDING].clone()}))
    model = weights(checkpoint)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
@pytest.mark.parametrize("named", ["flash_attention_2", "eager"])
def test_a_checkpoint_does_not_choose_the_attention(checkpoint, key, named):
    edit(checkpoint / "config.json", **{key: named})
    assert weights(checkpoint).config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "value",
    [
        {"pad_token_id": 8192},
        {"hidden_act": "xyz"},
        {"rope_parameters": {"rope_type": "xyz", "rope_theta": 1e4}},
    ],
)
def test_a_configuration_that_no_model_can_have_is_one_line(checkpoint, value):
    edit(checkpoint / "config.json", **value)
    refused(checkpoint, r"my-llama/config\.json describes no model that can be built .*; correct it")


NONE = (0, -1, math.nan, math.inf, "1", True)
SIZES = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        *(({name: value}, f"{name} is .*, not a positive whole number") for name in SIZES for value in NONE),
        *(({"rms_norm_eps": value}, "rms_norm_eps is .*, not a positive number") for value in NONE),
        *(({"rope_theta": value}, "rope_theta is .*, not a positive number") for value in NONE),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}, "rope_theta is '0.0'"),
        ({"rope_scaling": {"type": "linear", "factor": math.nan}}, "factor is 'nan'"),
        ({"num_key_value_heads": 3}, "heads do not share 3 of keys"),
        (
            {"num_attention_heads": 7, "num_key_value_heads": 7, "head_dim": None},
            "not divided evenly by 7 heads",
        ),
        ({"head_dim": 7}, "heads of 7 channels have no halves"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, and"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}, "factor is 0.25, and"),
        ({"rope_scaling": {"factor": 4.0}}, "has the factor 4.0 and no rope_type"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
            "say different",
        ),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "outside of the"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "of their own for full_attention"),
        ({"rope_scaling": {"low_freq_factor": 4.0, "high_freq_factor": 1.0}}, "is not below"),
        ({"attention_multiplier": 0.5}, "attention_multiplier is 0.5, and none"),
        ({"logits_scaling": 8.0}, "logits_scaling is 8.0, and none"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, and none"),
        ({"no_rope_layers": [1, 0]}, r"no_rope_layers is \[1, 0\], and none"),
    ],
)
def test_numbers_that_transformers_computes_nonsense_with_are_one_line(checkpoint, value, message):
    edit(checkpoint / "config.json", **{"rope_parameters": None} | value)
    refused(checkpoint, rf"my-llama/config\.json: .*{message}.*; correct it")


@pytest.mark.parametrize(
    "value",
    [
        {"rope_parameters": None, "rope_theta": 500000, "rope_scaling": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "factor": 1.0}, "rope_theta": 10000.0},
        {
            "rope_parameters": None,
            "rope_scaling": {"type": "linear", "factor": 2},
            "partial_rotary_factor": 1.0,
        },
        {"residual_multiplier": 1.0, "logit_scale": 1, "clip_qkv": None, "use_qk_norm": False},
    ],
)
def test_numbers_of_usual_checkpoints_are_taken(checkpoint, value):
    edit(checkpoint / "config.json", **value)
    assert find_checkpoint(settings(checkpoint)).family == "llama"


def test_attention_to_later_tokens_is_refused(checkpoint):
    edit(checkpoint / "config.json", is_causal=False)
    refused(checkpoint, r"my-llama: its configuration sets is_causal to False.*remove it")


def test_a_checkpoint_does_not_choose_what_a_pass_returns(checkpoint):
    edit(checkpoint / "config.json", output_attentions=True, output_hidden_states=True, return_dict=False)
    found = weights(checkpoint).model(input_ids=torch.tensor([[0, 1]]))
    assert found.keys() == {"last_hidden_state", "past_key_values"}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_named(checkpoint, value):
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[UP][5, 7] = value

    rewrite(checkpoint, change)
    refused(checkpoint, rf"1 weights of {UP} are not finite in float32")


def test_weights_whose_sum_alone_overflows_are_finite(llama):
    llama.lm_head.weight[0, :40] = 3e38
    check_finite(llama, Path("here"), "float32")
    with pytest.raises(UserError, match=r"40 weights of lm_head.weight are not finite in float16"):
        check_finite(llama.half(), Path("here"), "float16")
