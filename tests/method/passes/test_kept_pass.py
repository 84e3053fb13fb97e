"""A calibration pass that was cut off goes on from what is kept, and collects what a whole one does."""

import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from wisparse.method.calibration import Calibration
from wisparse.method.hooks import hooked
from wisparse.method.passes.kept_pass import KeptPass
from wisparse.method.passes.progress import Progress
from wisparse.repro.configuration import REPOSITORY

from ...conftest import make_calibration, make_method, make_tiny_model

NEEDS = {"statistics", "gate_statistics", "final_states"}
MODULE = ".".join(Path(__file__).relative_to(REPOSITORY).with_suffix("").parts)
KILLED = f"""
import os, signal, sys
from pathlib import Path
from {MODULE} import NEEDS, OfEachBatch, small
calibration, passes = small(), []

def kill_in_the_fifth(*_):
    passes.append(1)
    if len(passes) == 5:
        os.kill(os.getpid(), signal.SIGKILL)

calibration.model.model.layers[0].register_forward_hook(kill_in_the_fifth)
calibration.prepare(NEEDS, OfEachBatch(Path(sys.argv[1])))
"""


def small():
    """A calibration of eight passes."""
    calibration = make_calibration(make_tiny_model("llama"), sequences=8, length=16)
    calibration.batch_size = 1
    return calibration


def collected(calibration) -> dict[str, torch.Tensor]:
    found = calibration._collected
    return found.tensors() | {"states": torch.cat(found.states)}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def passes_of(calibration, needs, kept: KeptPass) -> int:
    """Prepare it; how many passes through the model that took."""
    passes = []
    first = calibration.model.model.layers[0]
    with hooked([first.register_forward_hook(lambda *_: passes.append(1))]):
        calibration.prepare(needs, kept)
    return len(passes)


class OfEachBatch(KeptPass):
    """Keeps each batch, however quick it was."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, after=0.0)

    def is_due(self) -> bool:
        return True


class Interrupted(OfEachBatch):
    """Is cut off when so many batches are kept."""

    def __init__(self, file: Path, batches: int) -> None:
        super().__init__(file)
        self.limit = batches

    def write(self, tensors, states, batches, of, seconds):
        super().write(tensors, states, batches, of, seconds)
        if batches == self.limit:
            raise KeyboardInterrupt


def cut_off(file: Path, needs=NEEDS, batches: int = 3) -> None:
    with pytest.raises(KeyboardInterrupt):
        small().prepare(needs, Interrupted(file, batches))


@pytest.mark.slow
def test_a_pass_that_is_killed_goes_on_and_collects_the_same(tmp_path):
    file = tmp_path / "kept"
    killed = subprocess.run([sys.executable, "-c", KILLED, file], cwd=REPOSITORY, check=False)
    assert killed.returncode == -signal.SIGKILL
    whole, goes_on = small(), small()
    whole.prepare(NEEDS)
    assert passes_of(goes_on, NEEDS, KeptPass(file)) == 4  # of eight: the fifth was killed
    assert_equal(collected(goes_on), collected(whole))


def test_it_is_cut_off_again_and_again(tmp_path):
    file, whole, goes_on = tmp_path / "kept", small(), small()
    for batches in (1, 4, 6):
        cut_off(file, batches=batches)
    whole.prepare(NEEDS)
    kept = KeptPass(file)
    assert passes_of(goes_on, NEEDS, kept) == 2
    assert goes_on._collected.seconds > kept.seconds > 0.0
    assert_equal(collected(goes_on), collected(whole))


def test_states_that_are_kept_are_not_written_again(tmp_path):
    file = tmp_path / "kept"
    cut_off(file)
    parts = sorted(tmp_path.glob("kept-states-*"))
    assert [len(load_file(part)["states"]) for part in parts] == [1, 1, 1]
    written = [part.stat().st_mtime_ns for part in parts]
    assert "states" not in load_file(file)
    cut_off(file, batches=5)
    assert [part.stat().st_mtime_ns for part in parts] == written
    assert len(list(tmp_path.glob("kept-states-*"))) == 5
    # The whole pass, whose states are one tensor by then, adds what is not kept.
    goes_on = small()
    goes_on.prepare(NEEDS, KeptPass(file, after=0.0))
    parts = [load_file(part)["states"] for part in sorted(tmp_path.glob("kept-states-*"))]
    assert torch.equal(torch.cat(parts), goes_on.final_states)


@pytest.mark.parametrize(
    "damage",
    [
        "cut short",
        "a byte changed",
        "states changed",
        "states lost",
        "other batches",
        "other text",
        "other weights",
    ],
)
def test_what_is_not_what_was_written_counts_as_nothing(tmp_path, caplog, damage):
    file, goes_on, whole = tmp_path / "kept", small(), small()
    cut_off(file)
    content = bytearray(file.read_bytes())
    if damage == "cut short":
        file.write_bytes(content[:-100])
    elif damage == "a byte changed":
        content[-100] ^= 1
        file.write_bytes(content)
    elif damage == "states changed":  # for others that are whole
        (tmp_path / "kept-states-1").write_bytes((tmp_path / "kept-states-0").read_bytes())
    elif damage == "states lost":
        (tmp_path / "kept-states-1").unlink()
    elif damage == "other text":
        for calibration in (goes_on, whole):
            calibration.input_ids = calibration.input_ids.roll(1)
    elif damage == "other weights":
        goes_on, whole = (
            Calibration(make_tiny_model("llama", seed=7), goes_on.input_ids, batch_size=1) for _ in range(2)
        )
    else:
        goes_on.batch_size = 2
    with caplog.at_level(logging.WARNING):
        assert passes_of(goes_on, NEEDS, KeptPass(file)) == 8 // goes_on.batch_size
    assert "begins anew" in caplog.text
    whole.prepare(NEEDS)
    assert torch.equal(goes_on.final_states, whole.final_states) or damage == "other batches"
    assert [one.up_output.tokens for one in goes_on.gate_statistics] == [8 * 16] * 2


def test_a_file_without_all_that_is_wanted_is_not_gone_on_from(tmp_path):
    file = tmp_path / "kept"
    cut_off(file, {"statistics"})
    goes_on, kept = small(), KeptPass(file)
    assert passes_of(goes_on, NEEDS, kept) == 8
    assert kept.seconds == 0.0
    assert goes_on.final_states.shape[:2] == (8, 16)


def test_a_file_with_more_than_is_wanted_is_gone_on_from_with_all_of_it(tmp_path):
    file = tmp_path / "kept"
    cut_off(file)
    goes_on = small()
    assert passes_of(goes_on, {"statistics"}, KeptPass(file)) == 5
    assert goes_on.final_states.shape[:2] == (8, 16)


def test_a_whole_pass_is_kept_for_the_searches_that_follow(tmp_path):
    first, second = small(), small()
    first.prepare(NEEDS, KeptPass(tmp_path / "one", after=0.0))
    # Another plan's file: the statistics are in memory, and no pass is made for it.
    assert passes_of(first, NEEDS, KeptPass(tmp_path / "two", after=0.0)) == 0
    assert passes_of(second, NEEDS, KeptPass(tmp_path / "two")) == 0
    assert_equal(collected(second), collected(first))
    written = (tmp_path / "two").stat().st_mtime_ns
    second.prepare(NEEDS, KeptPass(tmp_path / "three", after=1e9))
    assert not (tmp_path / "three").exists(), "a short pass is not worth a file"
    assert (tmp_path / "two").stat().st_mtime_ns == written


def test_a_plan_is_the_same_and_leaves_no_file(tmp_path):
    file = tmp_path / "steps"
    cut_off(file.with_name("steps.calibration"))
    assert file.with_name("steps.calibration-states-0").exists()
    file.with_name("steps.calibration-unfinished").write_bytes(b"of a kill while it was written")
    method = make_method("teal_uniform")
    progress = Progress(file)
    found, expected = method.plan(small(), 0.5, progress), method.plan(small(), 0.5)
    assert found.provenance.search.stages["calibration"] > progress.calibration.seconds > 0.0
    assert found.rules.keys() == expected.rules.keys()
    assert all(
        torch.equal(found.rules[name].thresholds, rule.thresholds) for name, rule in expected.rules.items()
    )
    progress.forget()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named_once(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        small().prepare(NEEDS, KeptPass(tmp_path / "file" / "kept", after=0.0))
    assert caplog.text.count("cannot be written") == 1
