import pytest
import torch
from wisparse.method.errors import UserError
from wisparse.method.projections import parameter_shares

from ..conftest import make_calibration, make_method


@pytest.mark.parametrize(("name", "power"), [("chess", "squared"), ("chess_2025", "absolute"), ("cats", None)])
def test_thresholds_follow_the_importance(name, power, llama):
    calibration = make_calibration(llama)
    plan = make_method(name).plan(calibration, 0.3)
    for block, thresholds in plan.gate_thresholds.items():
        moments = calibration.gate_statistics[block].up_output
        if power == "squared":  # t = sqrt(τ / E[u²])
            importance = thresholds.double().square() * moments.mean_squared()
        elif power == "absolute":  # t = τ / E|u|
            importance = thresholds.double() * moments.mean_absolute()
        else:
            importance = thresholds
        assert torch.allclose(importance, importance[:1].expand_as(importance), rtol=1e-4)


def test_moments_are_those_of_ups_output(llama):
    calibration = make_calibration(llama)
    outputs = []
    handle = llama.model.layers[1].mlp.up_proj.register_forward_hook(lambda _, __, u: outputs.append(u))
    llama(input_ids=calibration.input_ids)
    handle.remove()
    u = outputs[0].flatten(0, 1).double()
    moments = calibration.gate_statistics[1].up_output
    assert torch.allclose(moments.mean_squared(), u.square().mean(0))
    assert torch.allclose(moments.mean_absolute(), u.abs().mean(0))


def test_touched_sparsity_makes_up_for_what_stays_dense(llama):
    calibration = make_calibration(llama)
    shares = parameter_shares(llama.model.layers[0])
    for name, touched in (("chess", ("q", "o", "up", "down")), ("chess_ffn", ("up", "down"))):
        plan = make_method(name).plan(calibration, 0.35)
        k = plan.provenance.details["touched_sparsity"]
        assert k * sum(shares[n] for n in touched) == pytest.approx(0.35)
        assert set(plan.rules) == {f"{b}.{n}" for b in range(2) for n in touched if n in "qo"}


def test_block_sparsity_of_real_models():
    """Reach of the method on the papers' architectures, from their shapes alone."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    configuration = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8,
        num_hidden_layers=1, vocab_size=16,
    )  # fmt: skip
    with torch.device("meta"):
        block = AutoModelForCausalLM.from_config(configuration).model.layers[0]
    shares = parameter_shares(block)
    assert shares["up"] + shares["down"] == pytest.approx(0.538, abs=5e-4)
    assert sum(shares[n] for n in ("q", "o", "up", "down")) == pytest.approx(0.692, abs=5e-4)


def test_beyond_reach_the_maximum_is_named(llama):
    with pytest.raises(UserError, match=r"maximum is below 0\.4"):
        make_method("chess_ffn").plan(make_calibration(llama), 0.9)


def test_unknown_release_is_refused():
    with pytest.raises(Exception, match=r"2024, 2025, cats"):
        make_method("chess", "method.release='2030'")


@pytest.mark.parametrize("name", ["chess", "chess_2025"])
def test_a_dead_neuron_is_dropped_first_and_the_sparsity_is_reached(name, llama):
    mlp = llama.model.layers[1].mlp
    mlp.up_proj.weight[5], mlp.gate_proj.weight[5], mlp.down_proj.weight[:, 5] = 0, 0, 0
    calibration = make_calibration(llama)
    thresholds = make_method(name).plan(calibration, 0.3).gate_thresholds[1]
    assert thresholds.isfinite().all()
    assert int(thresholds.argmax()) == 5
    below = calibration.gate_statistics[1].activation.sparsity_below(thresholds.log2()[None])
    assert float(below) == pytest.approx(make_method(name).touched_sparsity(calibration, 0.3), abs=1e-3)
