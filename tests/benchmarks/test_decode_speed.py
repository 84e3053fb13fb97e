"""Time of one decoded token of llama-mini, dense and under plans of uniform thresholds: `make bench`."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM
from wisparse.kernels.engine.decode_engine import DecodeEngine

from ..conftest import ROOT, make_calibration, make_method

pytestmark = pytest.mark.slow
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def model():
    folder = ROOT / "repro" / "embedded" / "models" / "llama-mini"
    return (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        .eval()
        .requires_grad_(False)
        .to(DEVICE)
    )


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.7])
def test_decoded_token(benchmark, model, sparsity):
    plan = make_method("teal_uniform").plan(make_calibration(model), sparsity) if sparsity else None
    engine = DecodeEngine(model, plan, capacity=2048)
    tokens = engine.prefill(torch.arange(1, 6, device=DEVICE)[None]).argmax(-1)

    def decode() -> torch.Tensor:
        if int(engine.cache.length) == engine.cache.capacity:
            engine.cache.length.fill_(5)
        logits = engine.step(tokens)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return logits

    logits = benchmark(decode)
    assert logits.shape == (1, model.config.vocab_size)
    assert logits.isfinite().all()
