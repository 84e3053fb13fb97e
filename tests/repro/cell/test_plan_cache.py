"""Plans are made once for one identity, kept while they are searched, and made anew where they are damaged."""

from __future__ import annotations

import logging

import pytest
import torch
from wisparse.method.errors import UserError
from wisparse.method.passes.progress import Progress
from wisparse.method.plan import ProjectionRule, SparsityPlan
from wisparse.method.provenance import PlanProvenance, SearchCost
from wisparse.repro.cell.plan_cache import PlanCache
from wisparse.repro.locks import LOCKS


def plan(_progress: Progress, threshold: float = 0.5) -> SparsityPlan:
    rule = ProjectionRule(thresholds=torch.full((4,), threshold))
    return SparsityPlan(
        {"0.q": (4, 4)}, {"0.q": rule}, provenance=PlanProvenance(search=SearchCost({"thresholds": 0.1}))
    )


def refuse(_progress: Progress) -> SparsityPlan:
    raise UserError("must not be called")


def test_a_plan_is_made_once_for_one_identity(tmp_path):
    cache = PlanCache(tmp_path)
    first = cache.find_or_make({"sparsity": 0.5}, plan)
    again = cache.find_or_make({"sparsity": 0.5}, refuse)
    assert (first.from_cache, again.from_cache) == (False, True)
    assert first.sha256 == again.sha256
    assert torch.equal(first.plan.rules["0.q"].thresholds, again.plan.rules["0.q"].thresholds)
    other = cache.find_or_make({"sparsity": 0.6}, lambda progress: plan(progress, 0.6))
    assert not other.from_cache
    assert other.sha256 != first.sha256


@pytest.mark.parametrize("name", ["plan.json", "plan.safetensors"])
def test_a_damaged_plan_is_made_again_with_a_warning(tmp_path, caplog, name):
    cache = PlanCache(tmp_path)
    first = cache.find_or_make({"sparsity": 0.5}, plan)
    path = tmp_path / first.key[:32] / name
    path.write_bytes(path.read_bytes()[:10])
    with caplog.at_level(logging.WARNING):
        again = cache.find_or_make({"sparsity": 0.5}, plan)
    assert not again.from_cache
    assert "damaged" in caplog.text
    assert cache.find_or_make({"sparsity": 0.5}, refuse).sha256 == first.sha256


def test_a_plan_whose_bytes_were_changed_is_made_again_with_a_warning(tmp_path, caplog):
    cache = PlanCache(tmp_path)
    first = cache.find_or_make({"sparsity": 0.5}, plan)
    path = tmp_path / first.key[:32] / "plan.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes(8))  # still a plan, with other thresholds
    with caplog.at_level(logging.WARNING):
        again = cache.find_or_make({"sparsity": 0.5}, plan)
    assert not again.from_cache
    assert "is not what was written" in caplog.text
    assert again.sha256 == first.sha256
    assert path.read_bytes() == content


def test_a_plan_cut_off_in_the_making_gets_what_its_search_had_found(tmp_path):
    def cut_off(progress: Progress) -> SparsityPlan:
        progress.keep("coarse", "0", 1.5)
        raise KeyboardInterrupt

    def go_on(progress: Progress) -> SparsityPlan:
        assert progress.done("coarse", "0") == 1.5
        return plan(progress)

    cache = PlanCache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.find_or_make({"sparsity": 0.5}, cut_off)
    assert len(list(tmp_path.glob("*.progress.jsonl"))) == 1
    cache.find_or_make({"sparsity": 0.6}, lambda progress: plan(progress, progress.done("coarse", "0") or 0.5))
    assert cache.find_or_make({"sparsity": 0.5}, go_on).sha256
    assert not list(tmp_path.glob("*.progress.jsonl"))


def test_a_plan_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(UserError):
        PlanCache(tmp_path / "plans").find_or_make({}, refuse)
    assert [path.name for path in (tmp_path / "plans").rglob("*")] == [LOCKS]
