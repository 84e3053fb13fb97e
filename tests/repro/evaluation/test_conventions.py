"""Conventions of evaluation: the same for every checkpoint, recorded, and nothing that is shared is changed."""

import copy
import hashlib
import json
from datetime import datetime

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from wisparse.method.apply import applied
from wisparse.method.plan import SparsityPlan
from wisparse.method.projections import projection_shapes
from wisparse.method.tokens import pack
from wisparse.repro.evaluation.channel_suite import ChannelSuite
from wisparse.repro.evaluation.embedded_suite import EmbeddedSuite
from wisparse.repro.evaluation.language_model import SparseLM
from wisparse.repro.evaluation.massive_suite import MassiveSuite
from wisparse.repro.evaluation.one_block import OneBlockSuite
from wisparse.repro.evaluation.passes.conventions import conventions
from wisparse.repro.evaluation.suites import PerplexitySuite, text_windows

from ...conftest import ROOT, make_protocol
from ..conftest import LLAMA_MINI

README = str(ROOT / "README.md")


@pytest.fixture
def own_tokenizer(tokenizer):
    return copy.deepcopy(tokenizer)


def test_a_template_that_asks_for_the_date_is_told_the_same_every_day(model, own_tokenizer):
    own_tokenizer.chat_template = (
        "{{ strftime_now('%d %b %Y') }}|{{ date_string is defined }}|{{ messages[0].content }}"
    )
    found = SparseLM(model, own_tokenizer).apply_chat_template([{"role": "user", "content": "hi"}])
    assert found == "26 Jul 2024|False|hi"
    assert datetime.now().year > 2024, "another day than today's"


def test_a_special_token_in_a_text_is_that_token_whatever_the_tokenizer_is_set_to(model, own_tokenizer):
    own_tokenizer.split_special_tokens = True
    text = "a <|bos|> b"
    plain = SparseLM(model, own_tokenizer).tok_encode(text, add_special_tokens=False)
    assert plain.count(0) == 1
    assert text_windows(own_tokenizer, text, len(plain))[0] == [plain]
    assert pack([text * 4], own_tokenizer, 1, 1 + len(plain), "text")[0, 1:].tolist() == plain


@pytest.mark.parametrize("puts_bos", [False, True])
def test_bos_stands_once_and_the_record_says_what_the_tokenizer_does(tmp_path, model, tokenizer, puts_bos):
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    settings = json.loads(file.read_text())
    if puts_bos:
        begin = {"SpecialToken": {"id": "<|bos|>", "type_id": 0}}
        text = {"Sequence": {"id": "A", "type_id": 0}}
        settings["post_processor"] = {
            "type": "TemplateProcessing", "single": [begin, text], "pair": [begin, text],
            "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [0], "tokens": ["<|bos|>"]}},
        }  # fmt: skip
    file.write_text(json.dumps(settings))
    language_model = SparseLM(model, AutoTokenizer.from_pretrained(tmp_path))
    assert language_model.tok_encode("import os").count(0) == 1
    assert conventions(model, language_model.tokenizer) == {
        "begins_with": "<|bos|>",
        "documents_begin_with": "<|bos|>",
        "tokenizer_begins_with_it": puts_bos,
        "special_tokens_in_text": "read as special tokens",
        "answers": "greedy",
        "answers_end_at": ["<|bos|>"],
    }


def state(model, tokenizer):
    """Everything of a model and a tokenizer that an evaluation could change."""
    weights = {
        name: hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in model.state_dict().items()
    }
    own = {name: value for name, value in vars(tokenizer).items() if name != "_tokenizer"}
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return (
        weights, model.config.to_dict(), model.config._attn_implementation, model.generation_config.to_dict(),
        sorted(vars(model)), hooks, model.training, model.lm_head.weight is model.model.embed_tokens.weight,
        copy.deepcopy(own), len(tokenizer), tokenizer.backend_tokenizer.to_str(),
    )  # fmt: skip


class Ids:
    """Two sequences."""

    batch_size = 1

    def input_ids(self, tokenizer):
        return torch.arange(2 * 6).view(2, 6) + 300


@pytest.mark.slow
def test_no_suite_changes_the_model_or_the_tokenizer_and_their_order_does_not_matter():
    """The tokenizer names no padding token and lm_head is not the embedding: lm-eval would change both."""
    tokenizer = AutoTokenizer.from_pretrained(LLAMA_MINI)
    tokenizer.pad_token = None
    model = AutoModelForCausalLM.from_pretrained(LLAMA_MINI, dtype=torch.float32).eval()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 0.5)
    text = PerplexitySuite(README, length=32, windows=2)
    suites = {
        "embedded": EmbeddedSuite(tasks=["next_line", "complete_line"], limit=1, documents=1),
        "perplexity": text,
        "one_block": OneBlockSuite("one_block", text),
        "massive": MassiveSuite("massive", Ids()),
        "channels": ChannelSuite("channels", Ids(), None, ["q"]),
    }
    before = state(model, tokenizer)

    def run(name):
        with applied(model, SparsityPlan(projection_shapes(model)), make_protocol("half")) as session:
            found = suites[name].run(model, tokenizer, session)
        assert state(model, tokenizer) == before, name
        return json.dumps([found.to_dict(), found.items_to_dict()])

    first = {name: run(name) for name in suites}
    assert {name: run(name) for name in reversed(suites)} == first
