"""Searches where memory is too small for as many candidates at once as were asked for."""

from __future__ import annotations

import pytest
import torch
from wisparse.method.rules import RuleBuilder, StaticThreshold
from wisparse.method.search.block_error import BlockError
from wisparse.method.search.block_probe import walk_blocks
from wisparse.method.search.divergence import OutputDivergence
from wisparse.method.search.turns import Turns

from ...conftest import make_calibration


def test_a_turn_that_does_not_fit_is_halved_for_good():
    asked = []

    def evaluate(part):
        asked.append((part.start, part.stop))
        if part.stop - part.start > 3:
            raise torch.OutOfMemoryError("too large")
        return torch.arange(part.start, part.stop)

    turns = Turns(8)
    found = list(turns.over(9, evaluate))
    assert torch.cat([values for _, values in found]).tolist() == list(range(9))
    assert asked == [(0, 8), (0, 4), (0, 2), (2, 4), (4, 6), (6, 8), (8, 9)]
    asked.clear()
    list(turns.over(3, evaluate))
    assert asked == [(0, 2), (2, 3)]


def test_one_candidate_that_does_not_fit_is_an_error():
    def evaluate(_part):
        raise torch.OutOfMemoryError("too large")

    with pytest.raises(torch.OutOfMemoryError):
        list(Turns(4).over(4, evaluate))


def test_searches_find_the_same_with_less_memory(llama):
    calibration = make_calibration(llama)
    builder = RuleBuilder(calibration, StaticThreshold(), dict.fromkeys(calibration.shapes, 1.0))
    rules = {name: builder.candidates(name, torch.linspace(0.0, 0.8, 5)) for name in calibration.shapes}
    alike = torch.arange(5)[:, None].expand(5, len(llama.model.layers))
    of_block = {name.split(".")[1]: rule for name, rule in rules.items() if name.startswith("0.")}

    def measured():
        probe = next(walk_blocks(calibration, 64, 4096))
        errors = probe.errors(of_block, 5, BlockError("norm", "all"))
        return OutputDivergence(calibration, 64, batch_tokens=4096)(rules, alike), errors

    refused = []

    def too_small(_module, inputs):
        if len(inputs[0]) > 4:  # of ten: two sequences of five candidates
            refused.append(len(inputs[0]))
            raise torch.OutOfMemoryError("too large")

    expected = measured()
    handle = llama.model.layers[0].mlp.down_proj.register_forward_pre_hook(too_small)
    found = measured()
    handle.remove()
    assert refused == [10, 10]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.tolist() == pytest.approx(theirs.tolist(), rel=1e-5, abs=1e-7)
