"""The plain PyTorch decoder that speed is compared with: the same logits and tokens as transformers."""

from __future__ import annotations

import shutil

import pytest
import torch
from wisparse.kernels.errors import KernelError
from wisparse.repro.speed.compiled_decoder import CompiledDecoder
from wisparse.repro.speed.compiled_products import Int4Product, Int8Product, rounded_to_4_bits

from ...conftest import make_tiny_model

PROMPT, NEW = 18, 6  # past the window of 16 that the mistral model has


def decoded(decoder: CompiledDecoder, prompt: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy continuation (batch, PROMPT + NEW), and the logits of each decoded token."""
    tokens = decoder.prefill(prompt).argmax(-1)
    found, logits = [tokens], []
    for _ in range(NEW - 1):
        logits.append(decoder.step(tokens).clone())
        tokens = logits[-1].argmax(-1)
        found.append(tokens)
    return torch.cat([prompt, torch.stack(found, 1)], 1), torch.stack(logits, 1)


def prompts(batch: int) -> torch.Tensor:
    return torch.randint(1, 128, (batch, PROMPT), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("batch", [1, 3])
def test_it_continues_as_generate_does(tiny_model, batch):
    """Bias, sliding window and norms of each family; logits within rounding of float32."""
    prompt = prompts(batch)
    expected = tiny_model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, eos_token_id=None, pad_token_id=0,
        do_sample=False,
    )  # fmt: skip
    exact = tiny_model(expected).logits[:, PROMPT : PROMPT + NEW - 1]
    decoder = CompiledDecoder(tiny_model, batch, PROMPT + NEW, compiled=False)
    for _ in range(2):  # a second prompt starts anew
        sequence, logits = decoded(decoder, prompt)
        assert sequence.tolist() == expected.tolist()
        assert (logits - exact).abs().max() <= 2e-5 * exact.abs().max()


def test_a_relu_model():
    model = make_tiny_model("llama", blocks=1, activation="relu")
    sequence, logits = decoded(CompiledDecoder(model, 1, PROMPT + NEW, compiled=False), prompts(1))
    exact = model(sequence).logits[:, PROMPT : PROMPT + NEW - 1]
    assert (logits - exact).abs().max() <= 2e-5 * exact.abs().max()


def test_the_model_goes_on_working(llama):
    prompt = prompts(1)
    before = llama(prompt).logits
    CompiledDecoder(llama, 1, PROMPT + NEW, compiled=False)
    attention = llama.model.layers[0].self_attn
    assert attention.q_proj.weight.is_contiguous()
    assert (
        attention.k_proj.weight.untyped_storage().data_ptr()
        == attention.q_proj.weight.untyped_storage().data_ptr()
    )
    assert torch.equal(llama(prompt).logits, before)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_it_decodes_the_same_tokens():
    model = make_tiny_model("qwen2", blocks=1)
    prompt = prompts(1)
    plain, compiled = (
        decoded(CompiledDecoder(model, 1, PROMPT + NEW, compiled=each), prompt) for each in (False, True)
    )
    assert compiled[0].tolist() == plain[0].tolist()
    assert torch.allclose(compiled[1], plain[1], atol=1e-4)


def test_what_it_does_not_know_it_refuses(llama):
    llama.config.model_type = "gpt2"
    with pytest.raises(KernelError, match="'gpt2' is not supported"):
        CompiledDecoder(llama, 1, 8)


@pytest.mark.parametrize("bias", [False, True])
def test_a_product_in_8_bits_is_near_the_weight(bias):
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(24, 40, generator=generator), torch.randn(3, 40, generator=generator)
    added = torch.randn(24, generator=generator) if bias else None
    found, exact = Int8Product(weight.clone(), added)(x), torch.nn.functional.linear(x, weight, added)
    # A rounded value is off by at most half a step of 1/127 of its row's largest.
    assert ((found - exact).abs() <= weight.abs().amax(1) / 127 / 2 * x.abs().sum(1, keepdim=True)).all()
    assert Int8Product(weight, added).weight.dtype is torch.int8


def test_values_in_4_bits_are_near_the_weight():
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(0)) + 0.3
    values, parameters = rounded_to_4_bits(weight)
    assert (values.dtype, int(values.min()), int(values.max())) == (torch.uint8, 0, 15)
    scales, offsets = parameters.unbind(2)  # (groups, out)
    grouped = (values.float().unflatten(1, (2, 128)) - 8) * scales.T[..., None] + offsets.T[..., None]
    assert ((grouped.flatten(1) - weight).abs() <= 0.501 * scales.T.repeat_interleave(128, 1)).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch's product in 4 bits is for GPUs")
def test_torchs_product_in_4_bits_is_that_of_the_rounded_weight():
    weight = torch.randn(512, 1024, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(1, 1024, device="cuda", dtype=torch.bfloat16)
    values, parameters = rounded_to_4_bits(weight)
    scales, offsets = parameters.bfloat16().float().unbind(2)
    exact = ((values.float().unflatten(1, (8, 128)) - 8) * scales.T[..., None] + offsets.T[..., None]).flatten(
        1
    )
    found = Int4Product(weight, None)(x)
    assert (found - x.float() @ exact.T).norm() <= 0.02 * found.norm()


def test_in_few_bits_the_model_keeps_its_weights_and_without_a_gpu_4_bits_are_refused(llama):
    prompt = prompts(1)
    before, weights = llama(prompt).logits, [(one.data_ptr(), one.stride()) for one in llama.parameters()]
    decoder = CompiledDecoder(llama, 1, PROMPT + NEW, compiled=False, name="compiled-decoder-int8")
    tokens = decoder.prefill(prompt).argmax(-1)
    logits = decoder.step(tokens)
    assert torch.equal(llama(prompt).logits, before)
    assert [(one.data_ptr(), one.stride()) for one in llama.parameters()] == weights
    exact = llama(torch.cat([prompt, tokens[None]], 1)).logits[:, -1]
    assert 0 < (logits - exact).norm() < 0.1 * exact.norm()
    if not torch.cuda.is_available():
        with pytest.raises(KernelError, match="leave out compiled-decoder-int4"):
            CompiledDecoder(llama, 1, PROMPT + NEW, compiled=False, name="compiled-decoder-int4")
