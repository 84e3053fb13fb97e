"""Thresholds within bounds in a GPU's decode step: rows of a batch have bounds of their own."""

import pytest
import torch

from ...conftest import make_tiny_model
from .test_triton_step import both_decode, make_plan


@pytest.mark.slow
def test_rows_of_a_batch_have_bounds_of_their_own():
    model = make_tiny_model("llama", blocks=1)
    expected, found = both_decode(model, make_plan(model, "topk_guided"), batch=3)
    assert torch.allclose(found, expected, atol=1e-4)
