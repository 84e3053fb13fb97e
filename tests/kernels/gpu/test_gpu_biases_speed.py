"""The two steps whose times are compared: they differ by their biases alone, and are timed in turn."""

from dataclasses import replace

import pytest
import torch
from wisparse.kernels.bench import gpu_biases
from wisparse.kernels.bench.gpu_biases import REPEATS, compared, with_biases
from wisparse.kernels.bench.parts.drawn import dropping, filled_cache, random_weights
from wisparse.kernels.model.decoder import DecoderShape

from ..triton_cases import DEVICE

SHAPE = DecoderShape(1, 128, 128, 1, 1, 128, 128, 1e-5, (None,))


def test_every_projection_has_a_bias_and_else_the_same_rule():
    plain, like = dropping(SHAPE, 0.5, DEVICE), torch.zeros(1, dtype=torch.float16, device=DEVICE)
    (found,) = with_biases(plain, SHAPE, like)
    assert found.rules.keys() == SHAPE.projection_shapes().keys()
    for name, rule in found.rules.items():
        assert rule.bias.dtype == torch.float16
        assert rule.bias.shape == SHAPE.projection_shapes()[name][:1]
        assert rule.bias.count_nonzero() > 0
        assert replace(rule, bias=None).thresholds is plain[0].rules[name].thresholds


@pytest.mark.slow
def test_the_fastest_of_each_counts_and_they_take_turns(monkeypatch):
    weights = random_weights(SHAPE, 16, 16, torch.float16, DEVICE)
    cache = filled_cache(SHAPE, torch.float16, DEVICE, 4)
    logits = []

    def clock(step):
        logits.append(step(torch.tensor([3], device=DEVICE)).clone())
        cache.length.fill_(4)
        return 10.0 - len(logits)

    assert compared(weights, cache, 0.5, clock) == (10.0 - 2 * REPEATS + 1, 10.0 - 2 * REPEATS)
    assert len(logits) == 2 * REPEATS
    assert torch.equal(logits[0], logits[2])
    assert not torch.equal(logits[0], logits[1])


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as exit:
        gpu_biases.main([])
    assert exit.value.code == 2
    assert "steps are timed on a CUDA GPU; there is none" in capsys.readouterr().err
