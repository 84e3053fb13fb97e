"""Samples tell a model's weights from others, whatever type they were loaded in and wherever they lie."""

from __future__ import annotations

import base64
import copy
from itertools import product

import pytest
import torch
from torch import nn
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.kernels.model.held_weights import own_samples
from wisparse.kernels.weight_samples import COUNT, STEP, first_difference, weight_samples
from wisparse.method.quantisation.quantisers import Int8
from wisparse.method.quantised_model import quantised
from wisparse.method.running.apply import applied

from ..conftest import make_calibration, make_method, make_protocol, make_tiny_model

HALF = (torch.bfloat16, torch.float16)
TYPES = (torch.float64, torch.float32, *HALF)


def decoded(text: str) -> torch.Tensor:
    name, _, values = text.partition(" ")
    return torch.frombuffer(bytearray(base64.b64decode(values)), dtype=getattr(torch, name))


def test_values_are_taken_where_they_are_said_to_be():
    model = nn.Linear(5, 3)
    model.weight.data = torch.arange(15.0).view(3, 5)
    found = weight_samples(model)
    assert decoded(found["weight"]).tolist() == [number * STEP % 15 for number in range(COUNT)]
    assert decoded(found["bias"]).tolist() == [model.bias[number * STEP % 3] for number in range(COUNT)]
    model.weight.data = model.weight.data.T.contiguous().T  # lies otherwise, holds the same
    assert weight_samples(model) == found


@pytest.mark.parametrize("stored", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize(("ours", "theirs"), list(product(TYPES, TYPES)), ids=str)
def test_one_checkpoint_in_two_types_has_the_same_samples(tiny_model, stored, ours, theirs):
    checkpoint = tiny_model.to(stored).state_dict()

    def loaded(dtype):
        model = make_tiny_model(tiny_model.config.model_type)
        model.load_state_dict({name: value.float() for name, value in checkpoint.items()})
        return weight_samples(model.to(dtype))

    assert first_difference(loaded(ours), loaded(theirs)) is None


@pytest.mark.parametrize(("ours", "theirs"), list(product(TYPES, TYPES)), ids=str)
def test_another_checkpoint_of_the_same_shapes_has_others(ours, theirs):
    one, other = (make_tiny_model("llama", seed=seed).to(dtype) for seed, dtype in ((0, ours), (7, theirs)))
    assert first_difference(weight_samples(one), weight_samples(other)) == "model.embed_tokens.weight"


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_step_of_training_is_seen(dtype):
    model, before = make_tiny_model("llama").to(dtype), weight_samples(make_tiny_model("llama").to(dtype))
    assert first_difference(before, weight_samples(model)) is None
    trained = model.model.layers[1].self_attn.q_proj.weight.requires_grad_(True)  # one matrix, as adapters have
    optimiser = torch.optim.AdamW([trained], lr=1e-4 if dtype.itemsize > 2 else 1e-3)
    model(torch.arange(20)[None]).logits.float().square().mean().backward()
    optimiser.step()
    assert first_difference(before, weight_samples(model)) == "model.layers.1.self_attn.q_proj.weight"


def test_a_head_counts_alike_tied_or_with_the_same_values_of_its_own(llama):
    llama.lm_head.weight = nn.Parameter(llama.model.embed_tokens.weight.clone())
    apart = weight_samples(llama)
    llama.lm_head.weight = llama.model.embed_tokens.weight
    assert weight_samples(llama) == apart
    assert "lm_head.weight" in apart


def test_other_names_and_what_is_no_sample_are_differences(llama):
    found = weight_samples(llama)
    assert first_difference(found, found | {"more": "float32 "}) == "more"
    name = "model.norm.weight"
    assert first_difference(found, {key: text for key, text in found.items() if key != name}) == name
    for text in ("", "int8 AAAA", "bfloat16 ????", "float16 AAA=", "bfloat16 AAA="):
        assert first_difference(found, found | {name: text}) == name
        assert first_difference(found | {name: text}, found) == name


@pytest.mark.parametrize("within", ["engine", "quantised", "rotated", "folded", "all at once"])
def test_a_held_model_has_the_samples_of_its_own_weights(llama, within):
    before, calibration = weight_samples(llama), make_calibration(llama)
    stored = Int8("int8", lm_head="int8").weights(calibration)
    method = {"rotated": "wina_rotated", "folded": "equal_loss_folded_given"}.get(within, "teal_uniform")
    plan = make_method(method).plan(calibration, 0.5)
    with (
        DecodeEngine(llama, plan, capacity=8)
        if within == "engine"
        else quantised(llama, stored if within in ("quantised", "all at once") else None)
    ):
        if within == "all at once":
            plan = make_method("teal_uniform").plan(make_calibration(llama), 0.5)
            with DecodeEngine(llama, plan, quantised=stored, capacity=8):
                assert own_samples(llama) == before
        if within in ("rotated", "folded"):
            with applied(llama, plan, make_protocol("all")):
                assert first_difference(weight_samples(llama), before) is not None
                assert own_samples(llama) == before
        assert own_samples(llama) == before
    assert own_samples(llama) == weight_samples(llama) == before


def test_weights_that_are_put_away_are_read_and_those_that_are_nowhere_refused(llama, tmp_path):
    before = weight_samples(llama)
    from accelerate import disk_offload

    disk_offload(llama.model.layers[1], tmp_path, torch.device("cpu"))
    assert any(parameter.is_meta for parameter in llama.parameters())
    assert weight_samples(llama) == before
    with pytest.raises(KernelError, match=r"embed_tokens\.weight is not in memory"):
        weight_samples(make_tiny_model("llama").to("meta"))


def test_activation_functions_count_and_versions_before_say_nothing_of_them(llama):
    found, name = weight_samples(llama), "model.layers.0.mlp.act_fn"
    points = torch.linspace(-6.0, 6.0, COUNT, dtype=torch.float64)
    assert torch.equal(decoded(found[name]), (points * torch.sigmoid(points)).half())
    assert weight_samples(copy.deepcopy(llama).bfloat16())[name] == found[name]
    without = {key: text for key, text in found.items() if not key.endswith("act_fn")}
    assert len(found) - len(without) == llama.config.num_hidden_layers
    llama.model.layers[0].mlp.act_fn = nn.ReLU()
    assert first_difference(found, weight_samples(llama)) == name
    assert first_difference(without, weight_samples(llama)) is None
