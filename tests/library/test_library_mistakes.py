"""Mistakes in what the library is given: one clear line each."""

import pytest
import torch
import wisparse
from torch import nn
from wisparse.kernels.errors import KernelError
from wisparse.method.errors import UserError
from wisparse.method.plan import PlanError
from wisparse.method.token_policy import TokenPolicy

from ..conftest import make_calibration, make_method
from .test_library import IDS, PROMPT


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((None, IDS), {"method": "tael"}, "no method is called 'tael'; choose from cats"),
        ((None, IDS), {"sparsity": 1.0}, "sparsity must be at least 0 and below 1, not 1.0"),
        ((None, "text"), {}, "texts need a tokenizer"),
        ((None, IDS.float()), {}, "token ids are"),
        ((None, IDS.to("meta")), {}, "token ids on the meta device have no values"),
        (("tokenizer", "text"), {}, "tokenizer='tokenizer' is none; give the model's"),
        ((None, IDS), {"seed": -1}, "seed=-1 is not a whole number from 0 to 4294967295"),
        ((None, IDS[0]), {}, "token ids are"),
        ((None, IDS + 1000), {}, "outside of the model's 128 embeddings"),
        ((None, IDS.repeat(1, 8)), {}, "sequences of 256 tokens exceed the model's 128 positions"),
        ((None, IDS.bool()), {}, "token ids are"),
        ((None, IDS.to(torch.uint8)), {}, "token ids are"),
        ((str.split, None), {}, "texts are strings"),
        ((str.split, 5), {}, "texts are strings"),
        ((str.split, {"text": ["a"]}), {}, "texts are strings"),
        ((None, IDS), {"sparsity": "0.5"}, "sparsity='0.5' is no number"),
        ((None, IDS), {"sparsity": True}, "sparsity=True is no number"),
        ((None, IDS), {"batch_size": 0}, "batch_size=0 is not a whole number of at least 1"),
        ((None, IDS), {"length": 1.5}, "length=1.5 is not a whole number"),
        ((None, IDS), {"seed": "a"}, "seed='a' is not a whole number"),
        ((None, IDS), {"method": None}, "method=None is no method"),
        ((None, IDS), {"search_tokens": 3}, "3 is no token policy"),
        ((None, IDS), {"search_tokens": "most"}, "no protocol is called 'most'"),
    ],
)
def test_a_mistake_is_one_line(llama, arguments, settings, message):
    with pytest.raises(UserError, match=message):
        wisparse.plan(llama, *arguments, **{"method": "teal", **settings})


@pytest.mark.parametrize("plan", ["plan.safetensors", {}, 3])
def test_what_is_no_plan_is_refused(llama, plan):
    for use in (wisparse.sparse, wisparse.engine):
        with pytest.raises(UserError, match="is no plan; make one"), use(llama, plan):
            pass
    with pytest.raises(UserError, match="sparse needs a plan"), wisparse.sparse(llama, None):
        pass


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([[1, 2]], {}, "tensor of token ids"),
        (PROMPT.float(), {}, "tensor of token ids .* not torch.float32"),
        (PROMPT[0], {}, "prompts of 1 rows"),
        (PROMPT + 1000, {}, "outside of the model's 128"),
        (-PROMPT - 1, {}, "outside of the model's 128"),
        (PROMPT, {"attention_mask": [1] * 7}, "attention mask is a tensor"),
        (PROMPT, {"attention_mask": torch.ones(1, 9)}, "attention mask is a tensor"),
        (PROMPT, {"attention_mask": torch.full((1, 7), 2)}, "has other values"),
        (PROMPT, {"new_tokens": 0}, "new_tokens=0 is not"),
        (PROMPT, {"new_tokens": 1.5}, "new_tokens=1.5 is not"),
        (PROMPT, {"stop_tokens": 5}, "stop_tokens=5 is no collection"),
        (PROMPT, {"stop_tokens": ["."]}, "is no collection of token ids"),
        (PROMPT, {"stop_tokens": [2**70]}, "stop_tokens has 1180591620717411303424, which is no token id"),
        (PROMPT, {"pad_token": 1.5}, "pad_token=1.5 is no token id from 0 to 127"),
        (PROMPT, {"pad_token": -1}, "pad_token=-1 is no token id"),
        (PROMPT, {"sampler": 5}, "sampler=5 is no sampler"),
        (PROMPT, {"sampler": lambda logits: None}, r"returns token ids \(1,\) int64, not NoneType"),
        (PROMPT, {"sampler": lambda logits: logits}, "a sampler returns token ids"),
        (PROMPT, {"sampler": lambda logits: logits.argmax(-1).float()}, "not .*torch.float32"),
        (PROMPT, {"sampler": lambda logits: logits.argmax(-1)[:, None]}, "a sampler returns token ids"),
    ],
)
def test_a_wrong_prompt_is_one_line(llama, prompt, settings, message):
    with wisparse.engine(llama) as engine, pytest.raises(KernelError, match=message):
        engine.generate(prompt, **{"new_tokens": 2, **settings})


@pytest.mark.parametrize(
    "sizes", [{"capacity": "64"}, {"capacity": 0}, {"batch": "2"}, {"batch": True}, {"batch": 0}]
)
def test_a_size_of_an_engine_that_is_no_number_is_one_line(llama, sizes):
    with (
        pytest.raises(KernelError, match=r"(capacity|batch)=.* is not a whole number"),
        wisparse.engine(llama, **sizes),
    ):
        pass


@pytest.mark.parametrize(
    "settings",
    [
        {"dense_share": float("nan")},
        {"dense_share": -0.1},
        {"dense_share": 7},
        {"dense_share": "half"},
        {"dense_share": True},
        {"dense_tokens": -3},
        {"dense_tokens": 2.5},
        {"dense_prompt": "no"},
        {"rows_sharing": 1.5},
        {"rows_sharing": 0},
    ],
)
def test_a_token_policy_of_numbers_that_are_none_is_refused(settings):
    """Such a share made every token sparse, without a word."""
    (name,) = settings
    with pytest.raises(UserError, match=name):
        TokenPolicy("mine", "here", **settings)


class Adapter(nn.Module):
    """A second way around a linear layer, as adapters put it there in place."""

    def __init__(self, linear):
        super().__init__()
        self.base_layer, self.second = linear, nn.Linear(linear.in_features, linear.out_features, bias=False)

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + self.second(x)


@pytest.mark.parametrize("method", ["teal_uniform", "rsparse", "larosa", "prox"])
def test_an_adapter_in_place_is_refused_and_leaves_the_model_to_others(llama, method):
    """Plans were made of the weights without it, and a rotated one left the model to nobody ever after."""
    before = llama.model.layers[0].mlp.up_proj
    llama.model.layers[0].mlp.up_proj = Adapter(before)
    with pytest.raises(UserError, match=r"0\.up is a Adapter of .*merge an adapter into the model"):
        wisparse.plan(llama, None, IDS, method=method, sparsity=0.15, search="minimal")
    llama.model.layers[0].mlp.up_proj = before
    plan = wisparse.plan(llama, None, IDS, method=method, sparsity=0.15, search="minimal")
    llama.model.layers[1].mlp.up_proj = Adapter(llama.model.layers[1].mlp.up_proj)
    with pytest.raises(UserError, match=r"1\.up is a Adapter"), wisparse.sparse(llama, plan):
        pass


def shared(model):
    model.model.layers[1] = model.model.layers[0]
    return model


def in_two_types(model):
    model.model.layers[1].bfloat16()
    return model


def emptied(model):
    model.model.layers = nn.ModuleList()
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: "llama", "'llama' is no model; load one with AutoModelForCausalLM"),
        (lambda model: None, "None is no model"),
        (lambda model: nn.Linear(2, 2), "a Linear is no model of AutoModelForCausalLM; unwrap it"),
        (nn.DataParallel, "a DataParallel is no model of AutoModelForCausalLM; unwrap it"),
        (shared, "some blocks of the model are one module"),
        (emptied, "the model has no blocks"),
        (in_two_types, r"the model's weights are in torch.bfloat16 and torch.float32; load it in one type"),
    ],
)
def test_what_is_no_model_is_one_line(llama, change, message):
    with pytest.raises(UserError, match=message):
        wisparse.plan(change(llama), None, IDS, method="teal")


def test_an_engine_of_what_is_no_model_is_one_line():
    with pytest.raises(UserError, match="a Linear is no model"), wisparse.engine(nn.Linear(2, 2)):
        pass


def test_bases_are_not_folded_into_other_blocks_than_the_configuration_has(llama):
    del llama.model.layers[1]
    with pytest.raises(UserError, match=r"has 1 blocks, and config\.json 2, and a plan in other bases"):
        make_method("equal_loss_folded_given").plan(make_calibration(llama), 0.5)


@pytest.mark.parametrize("path", [None, 5, "", "a\0b"])
def test_what_is_no_path_of_a_plan_is_one_line(llama, path):
    plan = wisparse.plan(llama, None, IDS, method="teal_uniform")
    for act in (plan.save, wisparse.load_plan):
        with pytest.raises(PlanError, match="is no path of a plan; give the name of a file or a folder"):
            act(path)


def test_fewer_rows_than_stand_for_a_batch_are_refused(llama):
    plan = wisparse.plan(llama, None, IDS, method="teal_uniform")
    policy = TokenPolicy("four", "a test", rows_sharing=2)
    with wisparse.sparse(llama, plan, tokens=policy) as session:
        for rows in (1, 3):
            with pytest.raises(UserError, match=f"rows_sharing=2 .* this pass has {rows}"):
                llama(IDS[:1].repeat(rows, 1))
        assert session.report()["tokens"] == 0
        llama(IDS[:1].repeat(4, 1))
        assert session.report()["tokens"] == 2 * IDS.shape[1]
    llama(IDS[:1])
