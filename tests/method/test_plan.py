"""Plans on disk: one file or a folder, whole or not at all; plans of older versions stay readable."""

import json
import math
from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from safetensors.torch import save_file
from wisparse.kernels.plan.mechanism import Mechanism
from wisparse.method.errors import UserError
from wisparse.method.plan import WITHOUT_SEAL, PlanError, ProjectionRule, SparsityPlan
from wisparse.method.provenance import PlanProvenance, SearchCost

from ..conftest import make_calibration, make_method

STORED_FACTS = {
    "sparsities": {"0.q": 0.5},
    "stages": {"calibration": 0.25, "thresholds": 0.125},
    "evaluations": 7,
    "evaluations_by_stage": {"greedy": 7},
    "method": "teal",
    "sparsity": 0.5,
}


def small_plan() -> SparsityPlan:
    rules = {
        "0.q": ProjectionRule(thresholds=torch.arange(4.0)),
        "0.k": ProjectionRule(top_k=2, weights=torch.ones(4), left=torch.ones(3, 1), right=torch.ones(1, 4)),
    }
    shapes = dict.fromkeys(("0.q", "0.k"), (3, 4)) | {"0.gate": (5, 4)}
    return SparsityPlan(
        shapes, rules, {0: torch.ones(5)}, {"0.mlp_input": torch.eye(4)}, PlanProvenance.from_dict(STORED_FACTS)
    )


@pytest.mark.parametrize("name", ["plan", "teal-0.5", "teal-50.safetensors"])
def test_file_and_folder_hold_the_same_plan(tmp_path, name):
    path = tmp_path / "new" / name
    for _ in range(2):  # the second takes the first one's place
        small_plan().save(path)
    assert path.is_file() == (path.suffix == ".safetensors")
    assert [entry.name for entry in path.parent.iterdir()] == [name]
    found, expected = SparsityPlan.load(path), small_plan()
    assert found.shapes == expected.shapes
    assert found.provenance == expected.provenance
    assert torch.equal(found.rules["0.q"].thresholds, expected.rules["0.q"].thresholds)
    assert found.rules["0.k"].top_k == 2
    assert found.rules["0.k"].rank == 1
    assert torch.equal(found.gate_thresholds[0], torch.ones(5))
    assert torch.equal(found.rotations["0.mlp_input"], torch.eye(4))


def test_tensors_that_share_memory_are_saved_each_for_itself(tmp_path):
    """Rules may share the weights of their score, or be parts of one tensor."""
    both, shapes = torch.arange(8.0).view(2, 4), {"0.q": (3, 4), "0.k": (3, 4), "0.v": (3, 4)}
    rules = {
        "0.q": ProjectionRule(top_k=1, weights=both[0]),
        "0.k": ProjectionRule(top_k=1, weights=both[0]),
        "0.v": ProjectionRule(thresholds=both[1]),
    }
    for name in ("folder", "file.safetensors"):
        SparsityPlan(shapes, rules).save(tmp_path / name)
        found = SparsityPlan.load(tmp_path / name).rules
        assert found["0.q"].weights.tolist() == found["0.k"].weights.tolist() == [0.0, 1.0, 2.0, 3.0]
        assert found["0.v"].thresholds.tolist() == [4.0, 5.0, 6.0, 7.0]


@pytest.mark.parametrize(
    ("part", "value", "named"),
    [
        ("thresholds", math.nan, "0.q.thresholds"),
        ("thresholds", math.inf, None),
        ("left", math.inf, "0.k.left"),
        ("weights", math.nan, "0.k.weights"),
    ],
)
def test_a_plan_with_what_is_no_number_is_named_and_not_read(tmp_path, part, value, named):
    plan = small_plan()
    getattr(plan.rules["0.q" if part == "thresholds" else "0.k"], part)[-1] = value
    plan.save(tmp_path / "plan")
    if named is None:  # it drops a channel at every token
        assert SparsityPlan.load(tmp_path / "plan").rules["0.q"].thresholds[-1] == math.inf
        return
    with pytest.raises(PlanError, match=rf"{named} is not a number; make the plan anew"):
        SparsityPlan.load(tmp_path / "plan")


MISFITS = {
    "99.q is of no block": lambda plan: plan.rules.update({"99.q": small_plan().rules["0.q"]}),
    "no projection zz": lambda plan: plan.rules.update({"0.zz": small_plan().rules["0.q"]}),
    "attention: there is no such site": lambda plan: plan.rotations.update({"0.attention": torch.eye(4)}),
    "top_k is -1": lambda plan: vars(plan.rules["0.k"]).update(top_k=-1),
    "top_k is 5, not a number of its 4 channels": lambda plan: vars(plan.rules["0.k"]).update(top_k=5),
    "thresholds has shape": lambda plan: vars(plan.rules["0.q"]).update(thresholds=torch.ones(1)),
    "0.q of shape .3. is no projection": lambda plan: plan.shapes.update({"0.q": (3,)}),
    "its gate and on up; take one": lambda plan: (
        plan.shapes.update({"0.up": (5, 4)}), plan.rules.update({"0.up": small_plan().rules["0.q"]})
    ),
    "gate thresholds, expected": lambda plan: plan.gate_thresholds.update({0: torch.ones(4)}),
    "7 is of no block": lambda plan: plan.gate_thresholds.update({7: torch.ones(5)}),
    "a basis is not orthogonal": lambda plan: plan.rotations["0.mlp_input"].mul_(1.1),
    "does not fit 4 channels": lambda plan: plan.rotations.update({"0.mlp_input": torch.eye(3)}),
}  # fmt: skip


@pytest.mark.parametrize("problem", MISFITS)
def test_a_plan_that_fits_no_model_is_refused_in_one_line(tmp_path, problem):
    plan = small_plan()
    MISFITS[problem](plan)
    plan.save(tmp_path / "plan.safetensors")
    with pytest.raises(PlanError, match=problem) as caught:
        SparsityPlan.load(tmp_path / "plan.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"top_k": {"0.k": 2.5}}, {"top_k": {"0.k": "7"}}, {"shapes": []}, {"shapes": {}}]
)
def test_a_document_of_other_types_is_refused_in_one_line(tmp_path, change):
    small_plan().save(tmp_path / "plan")
    document = json.loads((tmp_path / "plan" / "plan.json").read_text(encoding="utf-8"))
    (tmp_path / "plan" / "plan.json").write_text(
        json.dumps(document | {"format": WITHOUT_SEAL} | change), encoding="utf-8"
    )
    with pytest.raises(PlanError, match=r"top_k is (2.5|'7'), not|not a readable plan|is of no block"):
        SparsityPlan.load(tmp_path / "plan")


@pytest.mark.parametrize("name", ["plan.safetensors", "folder/plan.safetensors", "folder/plan.json"])
def test_a_plan_is_not_read_with_a_byte_changed(tmp_path, name):
    small_plan().save(tmp_path / name.partition("/")[0])
    file, stored = tmp_path / name, tmp_path / name.partition("/")[0]
    content = file.read_bytes()
    for place in range(0, len(content), 3):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(PlanError):
            SparsityPlan.load(stored)
    # A rule that differs, as a plan by hand would have it: nothing but the seal tells.
    file.write_bytes(content.replace(b"7", b"8") if name.endswith("json") else content[:-4] + bytes(4))
    with pytest.raises(PlanError, match="is not what was written; make the plan anew"):
        SparsityPlan.load(stored)
    file.write_bytes(content)
    assert SparsityPlan.load(stored).shapes == small_plan().shapes


def test_a_method_that_finds_no_number_says_where(llama, monkeypatch):
    monkeypatch.setattr("wisparse.method.rules.channel_weights", lambda norms, _: norms * math.nan)
    with pytest.raises(UserError, match=r"wina: 0\.q\.weights of the plan is not a number"):
        make_method("wina").plan(make_calibration(llama), 0.5)


def test_a_plan_without_a_tensor_is_a_plan(tmp_path):
    SparsityPlan({"0.q": (3, 4)}).save(tmp_path / "dense.safetensors")
    assert SparsityPlan.load(tmp_path / "dense.safetensors") == SparsityPlan({"0.q": (3, 4)})


def test_what_versions_before_wrote_is_read(tmp_path):
    """Format 1 as it was first written: provenance was a plain dictionary, and dense plans had no stages."""
    document = {
        "format": 1,
        "shapes": {"0.q": [3, 4]},
        "rules": ["0.q"],
        "top_k": {},
        "provenance": STORED_FACTS,
    }
    (tmp_path / "plan.json").write_text(json.dumps(document), encoding="utf-8")
    save_file({"0.q.thresholds": torch.arange(4.0)}, tmp_path / "plan.safetensors")
    plan = SparsityPlan.load(tmp_path)
    assert torch.equal(plan.rules["0.q"].thresholds, torch.arange(4.0))
    assert plan.provenance.to_dict() == STORED_FACTS
    assert plan.provenance.search == SearchCost({"calibration": 0.25, "thresholds": 0.125}, {"greedy": 7})
    document["provenance"] = {"stages": {}, "evaluations": 0}
    (tmp_path / "plan.json").write_text(json.dumps(document), encoding="utf-8")
    assert SparsityPlan.load(tmp_path).provenance == PlanProvenance()


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_what_is_no_plan_says_so(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    if content is None:
        save_file({"a": torch.ones(1)}, path)  # tensors of something else
    else:
        path.write_bytes(content)
    with pytest.raises(PlanError, match=r"weights\.safetensors: not a readable plan"):
        SparsityPlan.load(path)
    with pytest.raises(PlanError, match="not a readable plan"):
        SparsityPlan.load(tmp_path / "absent.safetensors")


def test_no_folder_of_something_else_is_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(PlanError, match=r"thesis\.tex"):
        small_plan().save(tmp_path)
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(PlanError, match="is a folder"):
        small_plan().save(tmp_path / "a.safetensors")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("name", ["dense", "chess", "teal"])
def test_provenance_says_method_sparsity_and_cost(llama, name):
    facts = make_method(name).plan(make_calibration(llama), 0.3).provenance.to_dict()
    assert (facts["method"], facts["sparsity"]) == (name, 0.3)
    assert facts["evaluations"] == sum(facts["evaluations_by_stage"].values())
    assert (
        facts["stages"].keys()
        == {
            "dense": set(),
            "chess": {"calibration", "thresholds"},
            "teal": {"calibration", "greedy", "thresholds"},
        }[name]
    )
    assert json.loads(json.dumps(facts)) == facts


def test_blocks_of_a_plan_say_what_they_are_made_of_and_what_that_reads():
    first, second = SparsityPlan(
        {"0.q": (3, 4), "1.q": (3, 4)}, small_plan().rules, {1: torch.ones(5)}, {"0.mlp_input": torch.eye(4)}
    ).block_plans()
    assert first.mechanisms() == {
        Mechanism.THRESHOLD: 0, Mechanism.TOP_K: 0, Mechanism.LOW_RANK: 3 + 4, Mechanism.ROTATION: 16,
    }  # fmt: skip
    others = {Mechanism.GATE, Mechanism.HEADS, Mechanism.SHARED_TOP_K, Mechanism.FOLDED, Mechanism.BIAS}
    others |= {Mechanism.SIGNS, Mechanism.PROXY, Mechanism.ROUTER, Mechanism.BOUNDED}
    assert set(first.mechanisms()) == set(Mechanism) - others
    assert set(second.mechanisms()) == {Mechanism.GATE}
    assert first.of("k").top_k == 2
    assert first.of("v") is None


def test_a_plan_keeps_which_masks_a_batch_shares(tmp_path):
    shared = {"0.q": None, "0.k": "sum", "0.v": "maximum"}
    rules = {name: ProjectionRule(top_k=1, weights=torch.ones(4), shared=how) for name, how in shared.items()}
    SparsityPlan(dict.fromkeys(rules, (3, 4)), rules).save(tmp_path / "plan")
    found = SparsityPlan.load(tmp_path / "plan")
    assert [rule.shared for rule in found.rules.values()] == [None, "sum", "maximum"]
    assert set(found.block_plans()[0].mechanisms()) == {Mechanism.TOP_K, Mechanism.SHARED_TOP_K}
    with pytest.raises(ValueError, match="shared by top-k"):
        replace(rules["0.q"], shared="mean")


def test_a_plan_is_written_as_it_always_was(tmp_path):
    """Records name plans by the hash of these bytes."""
    small_plan().save(tmp_path / "plan")
    written = (tmp_path / "plan" / "plan.safetensors").read_bytes()
    assert sha256(written).hexdigest() == "f30d5ecf1f06120ddc80fcfd998b3a03fe43ed408d018e46e93ea5c5ab335975"
