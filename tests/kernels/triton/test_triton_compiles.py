"""What the interpreter accepts must compile, too: for sm_90, without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..triton_cases import DEVICE

KERNELS = {
    "embed", "compact", "gemv", "neurons", "select", "rows", "router", "selected_attention", "dequantise",
    "onto_residual", "group_choice",
}  # fmt: skip
OF_BATCH = {
    1: {"short_attention"},
    3: {"attention", "magnitudes", "shared_lists", "neurons_of_sums"},
}
"""Kernels of one row, and those of several."""


@pytest.mark.slow
@pytest.mark.skipif(DEVICE.type == "cuda", reason="there, the other tests run compiled")
@pytest.mark.parametrize("batch", OF_BATCH)
def test_every_kernel_compiles_for_hopper(batch):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).parent / "compile_for_hopper.py"
    done = subprocess.run(
        [sys.executable, program, str(batch)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(done.stdout.split()) == {f"{name}_kernel" for name in KERNELS | OF_BATCH[batch]}
