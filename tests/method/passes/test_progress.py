"""A search that was cut off goes on from its last step and ends as if it had not been."""

import logging

import pytest
from wisparse.method.passes.progress import Progress
from wisparse.method.provenance import SearchCost
from wisparse.repro.cell.plan_cache import plan_digest

from ...conftest import make_calibration, make_method, make_tiny_model


class Cut(Progress):
    """Ends the search with an interruption after some steps."""

    def __init__(self, file, steps):
        super().__init__(file)
        self.left = steps

    def keep(self, stage, key, value):
        super().keep(stage, key, value)
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "overrides", "steps"),
    [
        ("teal", [], 1),
        ("wina", [], 1),
        ("wisparse", ["allocation=evolutionary"], 3),
        ("wisparse", [], -3),
        ("wisparse", ["method.block_inputs=sparse"], -3),
        ("rsparse", [], 5),
        ("wina_rotated", [], 1),
    ],
)
def test_a_search_that_was_cut_off_ends_as_one_that_was_not(tmp_path, method, overrides, steps):
    calibration = make_calibration(make_tiny_model("llama"))
    method = make_method(method, "search=minimal", *overrides)
    whole = Progress(tmp_path / "whole")
    expected = method.plan(calibration, 0.5, whole)
    lines = (tmp_path / "whole").read_text().splitlines()
    cut_at = steps % (len(lines) - 1)  # counted from the end where it is negative
    with pytest.raises(KeyboardInterrupt):
        method.plan(calibration, 0.5, Cut(tmp_path / "cut", cut_at))
    before = (tmp_path / "cut").read_text()
    assert len(before.splitlines()) == cut_at + 1  # the first says what all others are of

    found = method.plan(calibration, 0.5, Progress(tmp_path / "cut"))
    assert (tmp_path / "cut").read_text().startswith(before), "nothing was found twice"
    assert len((tmp_path / "cut").read_text().splitlines()) == len(lines)
    ours, theirs = found.provenance.to_dict(), expected.provenance.to_dict()
    assert ours.pop("stages").keys() == theirs.pop("stages").keys()
    assert ours == theirs
    found.save(tmp_path / "found")
    expected.save(tmp_path / "expected")
    assert plan_digest(tmp_path / "found") == plan_digest(tmp_path / "expected")


@pytest.mark.parametrize("other", ["weights", "text", "method", "sparsity", "nothing"])
def test_steps_of_another_search_are_not_gone_on_from(tmp_path, caplog, other):
    first = make_calibration(make_tiny_model("llama"))
    with pytest.raises(KeyboardInterrupt):
        make_method("teal", "search=minimal").plan(first, 0.5, Cut(tmp_path / "steps", 1))
    calibration, method, sparsity = first, make_method("teal", "search=minimal"), 0.5
    if other == "weights":
        calibration = make_calibration(make_tiny_model("llama", seed=7))
    elif other == "text":
        calibration = make_calibration(first.model, seed=3)
    elif other == "method":
        method = make_method("wina", "search=minimal")
    elif other == "sparsity":
        sparsity = 0.4
    expected = method.plan(calibration, sparsity)
    found = method.plan(calibration, sparsity, Progress(tmp_path / "steps"))
    assert ("begins anew" in caplog.text) == (other != "nothing")
    ours, theirs = (plan.provenance.details for plan in (found, expected))
    assert ours == theirs


def test_a_step_is_found_once_and_its_cost_counts_again(tmp_path):
    def find():
        cost.count("greedy", 3)
        return {"q": 0.1 + 0.2, "k": None, "all": [1, float("inf")]}

    cost = SearchCost(progress=Progress(tmp_path / "steps"))
    first = cost.step("greedy", "block 0", find)
    cost = SearchCost(progress=Progress(tmp_path / "steps"))
    assert cost.step("greedy", "block 0", lambda: pytest.fail("found already")) == first
    assert cost.evaluations == {"greedy": 3}
    assert cost.stages["greedy"] >= 0.0
    assert cost.step("greedy", "block 1", lambda: 7) == 7


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: text.replace("1.25", "1.35")])
def test_a_damaged_line_is_found_again(tmp_path, damage):
    file = tmp_path / "steps"
    progress = Progress(file)
    for number in range(3):
        progress.keep("coarse", str(number), number + 0.25)
    whole = file.read_text()
    file.write_text(whole.splitlines(keepends=True)[0] + damage("".join(whole.splitlines(keepends=True)[1:])))
    progress = Progress(file)
    assert progress.done("coarse", "0") == 0.25
    assert progress.done("coarse", "2") is None
    for number in range(3):
        if progress.done("coarse", str(number)) is None:
            progress.keep("coarse", str(number), number + 0.25)
    assert file.read_text() == whole


def test_a_folder_that_cannot_be_written_is_named_and_the_search_goes_on(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    progress = Progress(tmp_path / "file" / "steps")
    with caplog.at_level(logging.WARNING):
        progress.keep("coarse", "0", 1)
        progress.keep("coarse", "1", 1)
    assert caplog.text.count("file cannot be written") == 1
