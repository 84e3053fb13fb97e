"""What the interpreter accepts must compile, too: for sm_90, without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..triton_cases import DEVICE

KERNELS = {
    "embed", "compact", "gemv", "neurons", "select", "rows", "router", "selected_attention", "dequantise",
    "onto_residual", "group_choice", "histogram", "near_costs", "thresholded", "relative_slopes",
}  # fmt: skip
OF_BATCH = {
    1: {"short_attention"},
    3: {"attention", "magnitudes", "shared_lists", "neurons_of_sums"},
}
"""Kernels of one row, and those of several."""


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DEVICE.type == "cuda", reason="there, the other tests run compiled"),
]


def printed(program: str, *arguments: str) -> list[str]:
    """Words that a program beside this file prints, which Triton compiles for."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, Path(__file__).parent / program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@pytest.mark.parametrize("batch", OF_BATCH)
def test_every_kernel_compiles_for_hopper(batch):
    found = printed("compile_for_hopper.py", str(batch))
    assert set(found) == {f"{name}_kernel" for name in KERNELS | OF_BATCH[batch]}


def test_a_launch_is_started_again_as_triton_started_it_once():
    asked, same, others = map(int, printed("repeat_on_hopper.py"))
    assert (asked, others) == (1, 0)
    assert same > 20
