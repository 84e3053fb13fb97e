"""What is compiled, and options of `generate`, run under a plan as the plan says, or are refused."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from transformers import CompileConfig, GenerationConfig
from wisparse.method.errors import UserError
from wisparse.method.running.acting import PLANNING, acting_on
from wisparse.method.running.apply import applied

from ...conftest import make_calibration, make_method, make_protocol, make_tiny_model

GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
IDS = torch.randint(128, (1, 9), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def planned(llama):
    return llama, make_method("teal_uniform").plan(make_calibration(llama), 0.5)


def whole(model):
    model.compile(backend="eager")
    return model


def wrapped(model):
    return torch.compile(model, backend="eager")


def one_block(model):
    model.model.layers[1].compile(backend="eager")
    return model


def its_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


@pytest.mark.parametrize("compiled", [whole, wrapped, one_block, its_forward])
def test_a_compiled_model_is_refused(planned, compiled):
    """What was compiled before goes on without hooks: the model was dense under every plan, without a word."""
    model, plan = planned
    model = compiled(model)
    with (
        pytest.raises(UserError, match=r"was compiled.*before torch\.compile"),
        applied(model, plan, make_protocol("all")),
    ):
        pass
    with pytest.raises(UserError, match="was compiled"), acting_on(model, PLANNING):
        pass
    with pytest.raises(UserError, match="was compiled"):
        make_calibration(model)


@pytest.mark.parametrize("place", ["by name", "by place"])
def test_a_configuration_of_a_generation_is_the_callers(planned, place):
    model, plan = planned
    given = GenerationConfig(**GREEDY, num_beams=2)
    with applied(model, plan, make_protocol("half")):
        expected = model.generate(IDS, **GREEDY, num_beams=2).tolist()
        found = (
            model.generate(IDS, given) if place == "by place" else model.generate(IDS, generation_config=given)
        )
    assert found.tolist() == expected
    assert given.disable_compile is None


def test_a_step_that_generate_has_compiled_is_not_run_under_a_plan(planned):
    """Transformers compiles steps on a static cache on a GPU by itself, and keeps them with the model."""
    model, plan = planned
    everywhere = CompileConfig(backend="eager", fullgraph=False)
    everywhere._compile_all_devices = True
    settings = {**GREEDY, "cache_implementation": "static", "compile_config": everywhere}
    before = model.generate(IDS, **settings)
    assert "_compiled_call" in vars(model)
    with (
        applied(model, plan, make_protocol("half")),
        pytest.raises(UserError, match=r"2-D mask.*cache_implementation"),
    ):
        model.generate(IDS, **settings)
    assert model.generate(IDS, **settings).tolist() == before.tolist()


@pytest.mark.parametrize(
    "draft", ["assistant_early_exit", "given", "given by place", "generation_config", "assistant_model"]
)
def test_a_model_does_not_draft_for_itself(planned, draft):
    """Its drafts counted as tokens of the text, those of its first block alone among them."""
    model, plan = planned
    dense, blocks = model.generate(IDS, **GREEDY), model.config.num_hidden_layers
    settings = {"assistant_early_exit": 1} if draft == "assistant_early_exit" else {}
    given = GenerationConfig(assistant_early_exit=1)
    if draft == "assistant_model":
        settings["assistant_model"] = model
    elif draft == "given":
        settings["generation_config"] = given
    elif draft == "generation_config":
        model.generation_config.assistant_early_exit = 1
    with (
        applied(model, plan, make_protocol("half")) as session,
        pytest.raises(UserError, match=r"draft for itself.*assistant_early_exit"),
    ):
        model.generate(IDS, *[given] * (draft == "given by place"), **GREEDY, **settings)
    model.generation_config.assistant_early_exit = None
    assert model.config.num_hidden_layers == blocks
    assert model.generate(IDS, **GREEDY).tolist() == dense.tolist()
    with applied(model, plan, make_protocol("half")) as session:
        model.generate(IDS, **GREEDY, assistant_model=make_tiny_model("llama"))
    assert session.report()["tokens"] >= 9 + 5


@pytest.mark.parametrize("longer", [0, 1, 9])
def test_guidance_without_a_cache_is_refused_too(planned, longer):
    """Its prompt is none whose passes come behind the cache of another: it is one that ends no later."""
    model, plan = planned
    negative = torch.cat([IDS, IDS[:, :longer]], dim=1).flip(1)
    settings = {**GREEDY, "guidance_scale": 1.5, "use_cache": False}
    with (
        applied(model, plan, make_protocol("half")),
        pytest.raises(UserError, match=r"reads a second prompt.*guidance_scale"),
    ):
        model.generate(IDS, **settings, negative_prompt_ids=negative)


def test_a_copy_made_within_a_context_is_refused(planned):
    """It kept the hooks for ever, with sparse tokens of the other's last pass; its generate was the other's."""
    model, plan = planned
    with applied(model, plan, make_protocol("half")):
        model(IDS)
        copy, inner = deepcopy(model), deepcopy(model.model)
        for act in (copy, inner, partial(copy.generate, **GREEDY)):
            with pytest.raises(UserError, match=r"was copied within a plan's context.*before or after"):
                act(IDS)
        model.generate(IDS, **GREEDY)
    with pytest.raises(UserError, match="was copied within"):
        copy(IDS)
    with pytest.raises(UserError, match="was copied within"):
        copy.generate(IDS, **GREEDY)
    assert torch.equal(deepcopy(model)(IDS).logits, model(IDS).logits)


def test_texts_packed_into_a_row_are_refused_where_they_would_be_one_text(planned):
    """Attention tells them apart by their positions; their sparse tokens were those of one text."""
    model, plan = planned
    positions = torch.cat([torch.arange(5), torch.arange(4)])[None]

    def packed(protocol):
        with applied(model, plan, make_protocol(protocol)):
            return model(IDS, position_ids=positions, use_cache=False).logits

    with pytest.raises(UserError, match=r"position_ids begin anew within a row"):
        packed("half")
    with applied(model, plan, make_protocol("all")):
        alone = torch.cat([model(IDS[:, :5]).logits, model(IDS[:, 5:]).logits], dim=1)
    assert torch.allclose(packed("all"), alone, atol=1e-5)


@pytest.mark.parametrize("door", ["generate_batch", "paged cache", "manager"])
def test_batches_packed_by_transformers_are_refused(planned, door):
    """A thread of theirs logged the refusal, and the answers came back empty; a paged cache took all memory."""
    model, plan = planned
    call = {
        "generate_batch": lambda: model.generate_batch(IDS.tolist(), max_new_tokens=2),
        "paged cache": lambda: model.generate(IDS, cache_implementation="paged", **GREEDY),
        "manager": lambda: model.init_continuous_batching(model.generation_config),
    }[door]
    with (
        applied(model, plan, make_protocol("all")),
        pytest.raises(UserError, match=r"generate_batch packs prompts.*padded on the left"),
    ):
        call()
    assert not {"generate", "init_continuous_batching"} & vars(model).keys()
