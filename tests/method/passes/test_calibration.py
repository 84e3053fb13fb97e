"""What is collected on calibration text: all of it in one pass, whatever is asked for first."""

import math

import pytest
import torch
from wisparse.baselines.teal import TEAL
from wisparse.method.calibration import Calibration
from wisparse.method.errors import UserError
from wisparse.method.hooks import hooked
from wisparse.method.passes.collectors import ChannelMoments, collected_inputs

from ...conftest import make_calibration, make_method

BOTH = {"statistics", "final_states"}


@pytest.fixture
def passes(llama):
    """A list that grows by one with every pass through the model."""
    found = []
    with hooked([llama.model.register_forward_hook(lambda *_: found.append(1))]):
        yield found


def test_one_pass_gives_all_that_is_needed(llama, passes):
    calibration = make_calibration(llama, sequences=3, length=8)
    calibration.prepare(BOTH)
    states, statistics = calibration.final_states, calibration.statistics
    calibration.prepare(BOTH)
    assert len(passes) == 1
    assert states.shape == (3, 8, llama.config.hidden_size)
    assert torch.allclose(llama.lm_head(states), llama(calibration.input_ids).logits, atol=1e-5)
    plain = Calibration(llama, calibration.input_ids).statistics
    for one, again in zip(statistics, plain, strict=True):
        assert one.magnitudes.keys() == again.magnitudes.keys()
        for site, histogram in one.magnitudes.items():
            assert torch.equal(histogram.counts, again.magnitudes[site].counts)


def test_neurons_are_counted_for_those_who_ask(llama, passes):
    calibration = make_calibration(llama)
    before = calibration.statistics
    assert len(passes) == 1
    gates = calibration.gate_statistics
    assert len(passes) == 2
    assert calibration.statistics is before
    assert [one.up_output.tokens for one in gates] == [calibration.input_ids.numel()] * 2
    assert [int(one.activation.counts.sum()) for one in gates] == [
        calibration.input_ids.numel() * llama.config.intermediate_size
    ] * 2
    make_method("chess").plan(calibration, 0.3)
    assert len(passes) == 2
    both = make_calibration(llama)
    both.prepare({"statistics", "gate_statistics"})
    assert len(passes) == 3


def test_states_before_statistics_cost_no_second_pass(llama, passes):
    calibration = make_calibration(llama)
    calibration.prepare({"final_states"})
    assert calibration.statistics
    assert len(passes) == 1


def test_states_after_statistics_leave_the_statistics_alone(llama, passes):
    calibration = make_calibration(llama)
    before = calibration.statistics
    calibration.prepare(BOTH)
    assert calibration.statistics is before
    assert len(passes) == 2
    assert len(calibration.final_states) == len(calibration.input_ids)


def test_states_that_nobody_asked_for_are_not_collected_in_silence(llama):
    calibration = make_calibration(llama)
    assert calibration.statistics
    with pytest.raises(RuntimeError, match=r"name 'final_states' in the method's `needs`"):
        _ = calibration.final_states


@pytest.mark.parametrize(("rounds", "needs"), [(0, {"statistics"}), (1, BOTH)])
def test_a_method_needs_what_it_reads(llama, passes, rounds, needs):
    method = make_method("equal_loss", f"method.correction_rounds={rounds}", "method.correction_sequences=2")
    assert method.needs == needs
    plan = method.plan(make_calibration(llama), 0.5)
    assert next(iter(plan.provenance.search.stages)) == "calibration"
    assert len(passes) == 2 + rounds  # of calibration one; the others ask what blocks are called with


def test_what_is_remembered_is_found_once(llama):
    calibration, found = make_calibration(llama), []
    for _ in range(2):
        assert calibration.remembered("one", lambda: found.append(1) or "value") == "value"
    assert found == [1]
    assert calibration.norms_of(2) is calibration.column_norms
    assert set(calibration.norms_of(1)) == set(calibration.shapes)


def test_norms_are_where_the_activations_are_though_weights_wait_elsewhere(llama, monkeypatch):
    # Weights streamed block by block lie in main memory between passes, what searches compare is on a GPU.
    monkeypatch.setattr(Calibration, "device", torch.device("meta"))
    assert {norms.device.type for norms in make_calibration(llama).column_norms.values()} == {"meta"}


def test_hooks_are_gone_where_one_cannot_be_placed(llama):
    norm = llama.model.norm

    def registered():
        yield norm.register_forward_hook(lambda *_: None)
        raise LookupError

    with pytest.raises(LookupError), hooked(registered()):
        pass
    assert not norm._forward_hooks
    with pytest.raises(ZeroDivisionError), hooked([norm.register_forward_hook(lambda *_: None)]):
        _ = 1 / 0
    assert not norm._forward_hooks


def test_dense_and_rotated_need_nothing_of_the_original_basis(llama, passes):
    assert make_method("dense").needs == make_method("wina_rotated").needs == frozenset()
    make_method("dense").plan(make_calibration(llama), 0.0)
    assert not passes
    assert issubclass(type(make_method("wina_rotated")), TEAL)


@pytest.mark.parametrize("needs", [{"statistics"}, BOTH])
def test_activations_that_are_not_finite_are_named_by_block_and_projection(llama, needs):
    llama.model.layers[1].mlp.up_proj.weight[3, 4] = math.inf
    with pytest.raises(UserError, match=r"block 1: the inputs of down are not finite on the calibration text"):
        make_calibration(llama).prepare(needs)


def test_the_first_of_several_is_named(llama):
    llama.model.layers[0].self_attn.v_proj.weight[3, 4] = math.nan
    with pytest.raises(UserError, match=r"block 0: the inputs of o are not finite"):
        make_method("teal").plan(make_calibration(llama), 0.5)


def test_a_last_block_that_overflows_is_seen_by_who_reads_final_states(llama):
    llama.model.layers[1].mlp.down_proj.weight[3, 4] = math.inf
    with pytest.raises(UserError, match="the final states are not finite"):
        make_calibration(llama).prepare(BOTH)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(1, 129, dtype=torch.long), "sequences of 129 tokens exceed the model's 128 positions"),
        (torch.tensor([[1, 128]]), "token id 128 is outside of the model's 128 embeddings"),
        (torch.tensor([[1, -1]]), "token id -1 is outside"),
        (torch.zeros(0, 8, dtype=torch.long), r"\(sequences, length\) int64, not \(0, 8\)"),
    ],
)
def test_text_that_the_model_cannot_read_is_refused(llama, ids, message):
    with pytest.raises(UserError, match=message):
        Calibration(llama, ids)
    with pytest.raises(UserError, match=message):
        collected_inputs({"o": ChannelMoments()}, {"o": llama.model.layers[0].self_attn.o_proj}, llama, ids, 1)
