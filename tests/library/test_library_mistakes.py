"""Mistakes in what the library is given: one clear line each."""

import pytest
import torch
import wisparse
from wisparse.kernels.errors import KernelError
from wisparse.method.errors import UserError
from wisparse.method.token_policy import TokenPolicy

from .test_library import IDS, PROMPT


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((None, IDS), {"method": "tael"}, "no method is called 'tael'; choose from cats"),
        ((None, IDS), {"sparsity": 1.0}, "sparsity must be at least 0 and below 1, not 1.0"),
        ((None, "text"), {}, "texts need a tokenizer"),
        ((None, IDS.float()), {}, "token ids are"),
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
        (PROMPT, {"sampler": lambda logits: None}, r"returns token ids \(1,\) int64, not NoneType"),
        (PROMPT, {"sampler": lambda logits: logits}, "a sampler returns token ids"),
        (PROMPT, {"sampler": lambda logits: logits.argmax(-1).float()}, "not .*torch.float32"),
        (PROMPT, {"sampler": lambda logits: logits.argmax(-1)[:, None]}, "a sampler returns token ids"),
    ],
)
def test_a_wrong_prompt_is_one_line(llama, prompt, settings, message):
    with wisparse.engine(llama) as engine, pytest.raises(KernelError, match=message):
        engine.generate(prompt, **{"new_tokens": 2, **settings})


@pytest.mark.parametrize("sizes", [{"capacity": "64"}, {"capacity": 64.0}, {"batch": "2"}, {"batch": True}])
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
