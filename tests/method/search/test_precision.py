"""Precision in which a search compares: whole models in TF32 on a GPU, blocks in that of the model."""

from __future__ import annotations

import torch
from wisparse.method.projections import key
from wisparse.method.rules import RuleBuilder, StaticThreshold
from wisparse.method.search.block_error import BlockError
from wisparse.method.search.block_probe import walk_blocks
from wisparse.method.search.divergence import OutputDivergence

from ...conftest import make_calibration


def test_whole_models_are_compared_in_tf32_and_blocks_are_not(llama):
    calibration = make_calibration(llama)
    builder = RuleBuilder(calibration, StaticThreshold(), dict.fromkeys(calibration.shapes, 0.5))
    rules = {name: builder.candidates(name, torch.tensor([0.2, 0.4])) for name in calibration.shapes}
    coarse: list[bool] = []
    seen = llama.model.layers[1].register_forward_pre_hook(
        lambda _, __: coarse.append(torch.backends.cuda.matmul.allow_tf32)
    )
    divergence = OutputDivergence(calibration, tokens=64, batch_tokens=64)
    divergence(rules, torch.tensor([[0, 1], [1, 0]]))
    assert set(coarse) == {True}  # the dense model, too: a candidate is measured against its like
    assert not torch.backends.cuda.matmul.allow_tf32
    coarse.clear()
    probe = list(walk_blocks(calibration, 64, 64))[1]
    probe.errors({"down": builder.candidates(key(1, "down"), torch.tensor([0.2, 0.4]))}, 2, BlockError())
    seen.remove()
    assert set(coarse) == {False}
