"""What would store, move or change weights that a plan or an engine holds is refused or found in one line."""

import copy
import pickle

import pytest
import torch
import wisparse
from torch import nn
from wisparse.kernels.engine.decode_engine import DecodeEngine
from wisparse.kernels.errors import KernelError
from wisparse.method.errors import UserError
from wisparse.method.quantisation.quantisers import Int8
from wisparse.method.quantised_model import quantised

from ..conftest import make_calibration, make_method, make_tiny_model
from .test_library import PROMPT, continued, planned


def rotated_plan(model):
    return make_method("wina_rotated", "method.greedy=false").plan(make_calibration(model), 0.5)


def folded_plan(model):
    return make_method("teal_folded", "method.inner.greedy=false").plan(make_calibration(model), 0.5)


@pytest.fixture(params=["an engine", "a plan in rotated bases", "a plan in folded bases", "its quantisation"])
def holding(request, llama):
    """Who holds the weights of a model, and the context in which it does."""
    if request.param == "an engine":
        return request.param, wisparse.engine(llama, planned(llama, "teal_uniform"))
    if request.param == "its quantisation":
        return request.param, quantised(llama, Int8("int8", lm_head="none").weights(make_calibration(llama)))
    make_plan = folded_plan if "folded" in request.param else rotated_plan
    return request.param, wisparse.sparse(llama, make_plan(llama))


def test_weights_that_are_held_do_not_leave_move_or_change(llama, holding, tmp_path):
    who, context = holding
    before = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    doors = [
        ("save_pretrained", lambda: llama.save_pretrained(tmp_path / "saved")),
        ("state_dict", lambda: llama.state_dict(None)),
        ("load_state_dict", lambda: llama.load_state_dict(before)),
        ("to, half", lambda: llama.to(torch.float16)),
        ("to, half, cuda", llama.cpu),
        ("save_pretrained", lambda: llama.model.save_pretrained(tmp_path / "saved")),
        ("state_dict", lambda: llama.model.state_dict(None)),
        ("to, half", lambda: llama.model.to(torch.bfloat16)),
    ]
    with context:
        for name, door in doors:
            with pytest.raises(KernelError, match=rf"{who} holds the model's weights, .* call {name}"):
                door()
    assert not (tmp_path / "saved").exists()
    llama.save_pretrained(tmp_path / "saved")
    llama.model.save_pretrained(tmp_path / "base")
    llama.load_state_dict(before)
    assert llama.half().dtype == torch.float16
    for model in (llama, llama.model):
        assert not {"save_pretrained", "state_dict", "load_state_dict", "_apply"} & vars(model).keys()


def replace_a_weight(model):
    linear = model.model.layers[1].mlp.down_proj
    linear.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)


CHANGES = {
    "a new parameter": replace_a_weight,
    "load_state_dict of a part": lambda model: model.lm_head.load_state_dict(
        {name: tensor * 2 for name, tensor in model.lm_head.state_dict().items()}
    ),
    "another type of a part": lambda model: model.model.layers[0].mlp.double(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_weights_are_found_at_the_next_step(llama, change):
    plan = rotated_plan(llama)
    with wisparse.engine(llama) as engine:
        engine.generate(PROMPT, new_tokens=2)
        change(llama)
        with pytest.raises(KernelError, match="weight was changed while an engine held"):
            engine.generate(PROMPT, new_tokens=2)
    changed = pytest.raises(KernelError, match="was changed while a plan in rotated bases held")
    model = make_tiny_model("llama")
    with changed, wisparse.sparse(model, plan):
        change(model)
    model = make_tiny_model("llama")
    with changed, wisparse.sparse(model, plan):
        change_and_call(model, change)


def change_and_call(model, change):
    change(model)
    with pytest.raises(KernelError, match="was changed while a plan in rotated bases held"):
        model(PROMPT)


def test_a_model_that_moves_under_a_plan_is_told_so(llama):
    with wisparse.sparse(llama, planned(llama, "teal_uniform")):
        continued(llama)
        llama.double()
        with pytest.raises(UserError, match=r"moved .* from cpu in float32 to cpu in float64; move it before"):
            continued(llama)


def test_weights_of_the_models_own_may_be_saved_and_trained_under_a_plan(llama, tmp_path):
    plan = planned(llama, "teal_uniform")
    with wisparse.sparse(llama, plan):
        llama.save_pretrained(tmp_path)
        with torch.no_grad():
            llama.lm_head.weight.mul_(2.0)
        continued(llama)
    assert (tmp_path / "config.json").exists()


def test_a_copy_of_a_held_model_is_free_and_two_engines_hold_together(llama):
    plan = planned(llama, "teal_uniform")
    first = DecodeEngine(llama, plan, capacity=40)
    alone = first.generate(PROMPT, new_tokens=4)
    other = copy.deepcopy(llama).half()
    assert other.dtype == torch.float16
    assert pickle.loads(pickle.dumps(other)).dtype == torch.float16
    with DecodeEngine(llama, capacity=40), pytest.raises(KernelError, match="an engine holds"):
        llama.half()
    assert torch.equal(first.generate(PROMPT, new_tokens=4), alone)
    with pytest.raises(KernelError, match="an engine holds"):
        llama.half()
    del first  # as good as closed
    llama.half()
