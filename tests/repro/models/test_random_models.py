"""Models with random weights, and weights that stream: the right architecture, seeded, and the same results."""

from __future__ import annotations

import pytest
import torch
from hydra import compose
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM
from wisparse.method.calibration import Calibration
from wisparse.method.equal_loss.sensitivity import channel_sensitivities
from wisparse.method.errors import UserError
from wisparse.method.running.apply import applied
from wisparse.repro.configuration import composing
from wisparse.repro.models import offload
from wisparse.repro.models.checkpoint import find_checkpoint, load_model

from ...conftest import make_calibration, make_method, make_protocol, make_tiny_model

SIZES = {
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-8b-base": 8_030_261_248,
    "llama3-8b": 8_030_261_248,
    "llama2-7b": 6_738_415_616,
    "mistral-7b": 7_248_023_552,
    "mistral-7b-base": 7_248_023_552,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-7b-base": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "qwen3-0.6b": 596_049_920,
}
"""Parameters that the checkpoints' own cards and indices state."""

SHRUNK = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def configured(name: str, **changes: object) -> dict[str, object]:
    with composing():
        model = compose("config", overrides=[f"model={name}", "model.weights=random", "model.device=cpu"]).model
    return OmegaConf.to_container(model, resolve=True) | changes


def shrunk(name: str, architecture: dict[str, object] | None = None, **changes: object) -> dict[str, object]:
    settings = configured(name, **changes)
    return settings | {"architecture": settings["architecture"] | SHRUNK | (architecture or {})}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_the_architecture_has_the_size_of_the_real_model(name):
    config = AutoConfig.for_model(**configured(name)["architecture"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(weight.numel() for weight in model.parameters()) == SIZES[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama3.1-8b", "mistral-7b", "qwen2.5-7b", "qwen3-0.6b"])
def test_random_weights_are_drawn_as_the_configuration_says(name):
    loaded = load_model(find_checkpoint(shrunk(name)))
    model = loaded.model
    assert loaded.checkpoint.name == f"{name}-random"
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    projections = [block.mlp.down_proj.weight for block in model.model.layers]
    assert all(float(weight.float().std()) == pytest.approx(0.02, rel=0.05) for weight in projections)
    assert not torch.equal(projections[0], projections[1])
    assert torch.equal(model.model.norm.weight, torch.ones_like(model.model.norm.weight))
    # Buffers are not in any checkpoint: they must be those of a model built the ordinary way.
    ordinary = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    buffers = dict(ordinary.named_buffers())
    assert buffers
    for buffer, value in model.named_buffers():
        assert value.dtype == buffers[buffer].dtype
        assert torch.equal(value, buffers[buffer])
    assert torch.isfinite(model(torch.tensor([[0, 5, 6]])).logits).all()


@pytest.mark.slow
def test_the_seed_makes_the_weights_and_the_fingerprint():
    first, again, other = (find_checkpoint(shrunk("mistral-7b", weights_seed=seed)) for seed in (0, 0, 1))
    weights = [load_model(checkpoint).model.lm_head.weight.clone() for checkpoint in (first, again, other)]
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    larger = find_checkpoint(shrunk("mistral-7b", {"num_hidden_layers": 3}))
    assert larger.fingerprint != first.fingerprint


def test_drawing_weights_leaves_the_random_numbers_of_the_process_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_model(find_checkpoint(shrunk("llama2-7b", weights_seed=3)))
    assert torch.equal(torch.rand(3), expected)


def test_special_tokens_follow_the_borrowed_tokenizer_and_generation_works():
    loaded = load_model(find_checkpoint(shrunk("qwen2.5-7b")))
    assert len(loaded.tokenizer) <= loaded.model.config.vocab_size
    assert loaded.model.config.eos_token_id == loaded.tokenizer.eos_token_id
    made = loaded.model.generate(torch.tensor([[0, 5]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert isinstance(loaded.tokenizer.decode(made[0]), str), "tokens beyond the vocabulary decode to nothing"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenizer": "/no/such/folder"}, r"model\.tokenizer=DIR.*/no/such/folder has none"),
        ({"tokenizer": None}, r"model\.tokenizer=DIR"),
        ({"architecture": {"vocab_size": 100}}, "they do not belong together"),
        (
            {"architecture": {"num_attention_heads": 7}},
            "model.architecture: 7 heads do not share 2 of keys and values evenly",
        ),
        (
            {"architecture": {"num_key_value_heads": 3}},
            "model.architecture: .* heads do not share 3 of keys and values evenly",
        ),
        ({"architecture": {"num_hidden_layers": 0}}, "num_hidden_layers is '0', not a positive whole number"),
        ({"architecture": {"model_type": "gpt2"}}, "'gpt2' is not supported"),
        ({"dtype": "int4"}, "choose from float32"),
        ({"offload": "sometimes"}, "choose auto, never, always"),
        ({"offload": "always"}, "streams weights through a GPU, and model.device is cpu"),
    ],
)
def test_mistakes_are_one_line(settings, message):
    architecture = settings.pop("architecture", None)
    with pytest.raises(UserError, match=message) as caught:
        load_model(find_checkpoint(shrunk("llama3.1-8b", architecture, **settings)))
    assert "\n" not in str(caught.value)


def test_an_architecture_is_needed():
    with pytest.raises(UserError, match=r"needs model\.architecture"):
        find_checkpoint(configured("llama3.1-8b", architecture=None))


@pytest.mark.parametrize(
    ("weight_bytes", "free", "mode", "expected"),
    [(16, 24, "auto", False), (16, 17, "auto", True), (1, 24, "always", True), (99, 24, "never", False)],
)
def test_weights_stream_when_they_do_not_fit(weight_bytes, free, mode, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, free))
    assert offload.streams(weight_bytes, "cuda", mode) is expected


def test_streamed_blocks_compute_the_same_and_each_sends_the_one_before_away(tiny_model):
    """There is no second device here: checked are the result and the order in which blocks give way."""
    ids = torch.randint(128, (2, 12), generator=torch.Generator().manual_seed(0))
    expected = tiny_model(ids).logits
    hooks = offload.stream_blocks(tiny_model, torch.device("cpu"))
    blocks = list(tiny_model.model.layers)
    assert [hook.model for hook in hooks] == blocks
    assert [hook.hook.prev_module_hook.model for hook in hooks] == [blocks[-1], *blocks[:-1]]
    assert torch.equal(tiny_model(ids).logits, expected)
    assert torch.equal(tiny_model(ids).logits, expected)


@pytest.mark.parametrize("name", ["teal", "rsparse"])
def test_a_streamed_model_is_calibrated_searched_and_applied_as_any_other(name):
    plain, streamed = make_tiny_model("llama"), make_tiny_model("llama")
    offload.stream_blocks(streamed, torch.device("cpu"))
    ids = torch.randint(128, (2, 12), generator=torch.Generator().manual_seed(0))
    found = []
    for model in (plain, streamed):
        plan = make_method(name).plan(make_calibration(model), 0.5)
        with applied(model, plan, make_protocol("all")):
            found.append(model(ids).logits)
    assert torch.equal(*found)


@pytest.mark.slow
def test_gradients_of_a_deep_model_are_finite():
    """The token that begins every text counts too, though the tokenizer also pads with it."""
    settings = shrunk("llama3.1-8b", {"num_hidden_layers": 32, "initializer_range": 0.3})
    loaded = load_model(find_checkpoint(settings))
    padding = loaded.model.get_input_embeddings().padding_idx
    assert padding == loaded.tokenizer.bos_token_id
    ids = torch.randint(1, 100, (2, 24), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = padding
    found = channel_sensitivities(Calibration(loaded.model, ids, 2), 0, 2)
    assert all(sensitivities.isfinite().all() for sensitivities in found.values())


def test_an_architecture_that_attends_to_later_tokens_is_refused():
    with pytest.raises(UserError, match="sets is_causal to False"):
        load_model(find_checkpoint(shrunk("mistral-7b", {"is_causal": False})))
