"""What WiSparse's paper leaves open: each setting does what it says, and nothing else."""

from dataclasses import replace

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from wisparse.method.errors import UserError
from wisparse.method.projections import PROJECTIONS, key, parameter_shares
from wisparse.method.provenance import SearchCost
from wisparse.method.rules import RuleBuilder, StaticThreshold
from wisparse.method.search.block_error import BlockError, counted
from wisparse.method.search.block_probe import walk_blocks
from wisparse.method.search.blocks import EvolutionarySearch, UniformBlocks
from wisparse.method.search.divergence import OutputDivergence
from wisparse.method.search.greedy import GreedySettings, greedy_allocation
from wisparse.method.wisparse.method import WiSparse
from wisparse.repro.configuration import CONFIGURATION

from ..conftest import composed, make_calibration
from .test_oracles import logits_under

READINGS = sorted(path.stem for path in (CONFIGURATION / "reading").glob("*.yaml"))


def test_positions_that_count():
    kept = {name: list(range(8))[counted(name, 8)] for name in ("all", "after_first", "late")}
    assert kept == {"all": list(range(8)), "after_first": list(range(1, 8)), "late": [6, 7]}
    assert [list(range(1))[counted(name, 1)] for name in ("all", "after_first", "late")] == [[0]] * 3


def test_block_errors_by_hand():
    difference = torch.zeros(1, 1, 4, 2)
    difference[0, 0, 0] = torch.tensor([30.0, 40.0])  # the first token, a hundred times as large as the last
    difference[0, 0, 3] = torch.tensor([0.3, 0.4])
    dense = torch.ones(1, 4, 2)
    dense[0, 0] = 100.0
    errors = {
        (form, positions): BlockError(form, positions)(difference, dense).item()
        for form in ("squared", "norm", "relative")
        for positions in ("all", "after_first", "late")
    }
    assert errors["squared", "all"] == pytest.approx((2500 + 0.25) / 8)
    assert errors["squared", "after_first"] == pytest.approx(0.25 / 6)
    assert errors["norm", "late"] == pytest.approx((0.3 + 0.4) / 2)
    assert errors["relative", "all"] == pytest.approx((2500 / 20000 + 0.25 / 2) / 4)
    assert errors["relative", "late"] == pytest.approx(0.25 / 2)


@pytest.mark.parametrize("target", [0.1, 0.93])
def test_greedy_steps_of_equal_sparsity_meet_the_target(llama, target):
    calibration = make_calibration(llama)
    builder = RuleBuilder(calibration, StaticThreshold(), dict.fromkeys(calibration.shapes, 1.0))
    settings = GreedySettings(0.1, 64, 4096, BlockError(), unit="sparsity")
    probe = next(walk_blocks(calibration, 64, 4096))
    found = greedy_allocation(probe, builder, target, settings, SearchCost())
    assert sum(found[name] * probe.shares[name] for name in PROJECTIONS) == pytest.approx(target, abs=1e-6)
    whole = [s for s in found.values() if abs(s / 0.1 - round(s / 0.1)) < 1e-6]
    assert len(whole) >= len(PROJECTIONS) - 1  # but for the last step every one has the same size
    taken = settings.taken(parameter_shares(probe.block))
    assert taken["gate"] / taken["k"] == pytest.approx(probe.shares["gate"] / probe.shares["k"])


def test_sparse_inputs_are_those_of_the_sparse_model(llama):
    calibration = make_calibration(llama)
    builder = RuleBuilder(calibration, StaticThreshold(), dict.fromkeys(calibration.shapes, 0.5))
    entering = []
    handle = llama.model.layers[1].register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    plan = builder.plan({key(0, name): 0.6 for name in PROJECTIONS})
    logits_under(llama, plan, calibration.search_tokens(128))
    handle.remove()
    walk = walk_blocks(calibration, 128, 64)
    first = next(walk)
    first.settle({name: builder.one(key(0, name), 0.6) for name in PROJECTIONS})
    second = next(walk)
    assert torch.allclose(second.hidden, entering[-1], atol=1e-5)
    assert not torch.allclose(second.hidden, first.output, atol=1e-3)
    dense = next(probe for probe in walk_blocks(calibration, 128, 64) if probe.index == 1)
    assert torch.equal(second.output, dense.output)  # compared with what the dense model has there


def test_divergence_of_the_late_positions_alone(llama):
    calibration = make_calibration(llama)
    builder = RuleBuilder(calibration, StaticThreshold(), dict.fromkeys(calibration.shapes, 0.0))
    rules = {name: builder.candidates(name, torch.tensor([0.6])) for name in calibration.shapes}
    first = torch.zeros(1, len(llama.model.layers), dtype=torch.long)
    ids = calibration.search_tokens(64)
    dense = llama(input_ids=ids).logits.log_softmax(-1)
    sparse = logits_under(llama, builder.plan(dict.fromkeys(calibration.shapes, 0.6)), ids).log_softmax(-1)
    kl = (dense.exp() * (dense - sparse)).sum(-1)
    for positions, part in (("all", kl), ("after_first", kl[:, 1:]), ("late", kl[:, kl.shape[1] * 3 // 4 :])):
        found = OutputDivergence(calibration, 64, 64, positions)(rules, first).item()
        assert found == pytest.approx(part.mean().item(), abs=1e-5)


def test_alpha_before_the_blocks_is_searched_at_the_uniform_sparsity(llama):
    calibration = make_calibration(llama)
    few = {"divergence_tokens": 32, "block_tokens": 32, "greedy_step": 1.0, "alpha_step": 0.5}
    late = WiSparse(allocator=EvolutionarySearch(generations=2, offspring=2, step=0.2), **few)
    early = replace(late, order=("alpha", "coarse", "greedy"))
    alone = replace(late, allocator=UniformBlocks(), fine=False)
    alphas = [method.plan(calibration, 0.5).provenance.details["alphas"] for method in (early, alone, late)]
    assert alphas[0] == alphas[1] != alphas[2]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"order": ["greedy", "coarse", "alpha"]}, "coarse before greedy"),
        ({"order": ["coarse", "greedy"]}, "once each"),
        ({"greedy_unit": "bytes"}, "greedy_unit=bytes"),
        ({"block_inputs": "wet"}, "block_inputs=wet"),
        ({"divergence_positions": "some"}, "divergence_positions=some"),
    ],
)
def test_a_reading_that_does_not_exist_is_refused(setting, says):
    with pytest.raises(UserError, match=says):
        WiSparse(**setting)


def test_a_block_error_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match=r"BlockError\.form=cubed is not one of squared, norm"):
        BlockError("cubed")
    with pytest.raises(UserError, match=r"BlockError\.positions=some is not one of all"):
        BlockError("squared", "some")


def test_every_reading_changes_the_run_and_has_a_name_of_its_own():
    plain = composed("method=wisparse")
    before = OmegaConf.to_container(plain)
    assert "none" in READINGS
    for path in (CONFIGURATION / "reading" / f"{name}.yaml" for name in READINGS if name != "none"):
        reading = OmegaConf.to_container(OmegaConf.load(path))
        allocation = reading.pop("defaults", None)
        changed = OmegaConf.merge(plain, reading)  # raises for a setting that there is not
        assert changed.method.name == f"wisparse_{path.stem}"
        instantiate(changed.method)
        changed.method.name = plain.method.name
        assert allocation or OmegaConf.to_container(changed) != before
    assert len(READINGS) > 20


def test_a_reading_stands_above_the_experiment():
    config = composed("method=wisparse", "experiment=table1_full", "reading=no_coarse_tokens_protocol")
    assert config.search.name == "medium"
    assert config.search.sparse_tokens == "protocol"
    assert instantiate(config.method).allocator == UniformBlocks()


def test_readings_are_all_in_their_experiment():
    experiment = OmegaConf.load(CONFIGURATION / "experiment" / "readings.yaml")
    named = experiment.hydra.sweeper.params.reading.split(",")
    assert sorted(named) == READINGS
