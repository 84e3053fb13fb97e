"""Conventions of evaluation: the same for every checkpoint, recorded, and nothing that is shared is changed."""

import copy
import hashlib
import json
from datetime import datetime

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from wisparse.method.plan import SparsityPlan
from wisparse.method.projections import projection_shapes
from wisparse.method.running.apply import applied
from wisparse.method.tokens import pack, stop_tokens
from wisparse.repro.evaluation.channel_suite import ChannelSuite
from wisparse.repro.evaluation.embedded_suite import EmbeddedSuite
from wisparse.repro.evaluation.language_model import SparseLM
from wisparse.repro.evaluation.massive_suite import MassiveSuite
from wisparse.repro.evaluation.one_block import OneBlockSuite
from wisparse.repro.evaluation.passes.conventions import conventions
from wisparse.repro.evaluation.suites import PerplexitySuite, text_windows
from wisparse.repro.models.tokenizer import load_tokenizer
from wisparse.repro.text.calibration_text import RandomTokens

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
    assert conventions(language_model) == {
        "begins_with": "<|bos|>",
        "documents_begin_with": "<|bos|>",
        "tokenizer_begins_with_it": puts_bos,
        "special_tokens_in_text": "read as special tokens",
        "longest": 1024,
        "requests_cut": 0,
        "answers": "greedy",
        "answers_end_at": ["<|bos|>"],
    }


@pytest.mark.parametrize("asked", [True, False])
def test_a_checkpoint_that_asks_for_no_bos_gets_none(tmp_path, model, tokenizer, asked):
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"add_bos_token": asked}))
    language_model = SparseLM(model, load_tokenizer(tmp_path))
    begin = [0] if asked else []
    assert language_model.tok_encode("import os") == begin + tokenizer.encode("import os")
    assert pack(["import os\n"], language_model.tokenizer, 1, 3, "text")[0, :1].tolist() == (
        begin or tokenizer.encode("import")
    )
    random = RandomTokens("random", 2, 4, 1, 0).input_ids(language_model.tokenizer)
    assert random[:, 0].tolist() == [0, 0] or not asked
    found = conventions(language_model)
    assert (found["begins_with"], found["documents_begin_with"]) == ("<|bos|>" if asked else None, "<|bos|>")


def test_what_a_tokenizer_cuts_or_pads_by_itself_does_not_act(tmp_path, model, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    settings = json.loads(file.read_text())
    settings["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    settings["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<|bos|>",
    }  # fmt: skip
    file.write_text(json.dumps(settings))
    text = "import os\nimport sys"
    found = SparseLM(model, AutoTokenizer.from_pretrained(tmp_path)).tok_encode(text)
    assert found == [0, *tokenizer.encode(text)]


def test_requests_that_lose_their_beginning_are_counted(model, tokenizer, caplog):
    language_model = SparseLM(model, tokenizer, max_length=8)
    long, short = "import os\n" * 4, "x"
    settings = {"max_gen_toks": 2}
    for kind, ends in (("loglikelihood", " y"), ("generate_until", settings)):
        asked = [Instance(kind, {}, (text, ends), 0) for text in (long, short)]
        getattr(language_model, kind)(asked, disable_tqdm=True)
    assert conventions(language_model)["requests_cut"] == 2
    assert "2 requests were longer than 8 tokens" in caplog.text


def test_the_default_of_a_configurations_class_is_no_end_token(model, tokenizer):
    silent = copy.copy(model)
    silent.config, silent.generation_config = (
        copy.deepcopy(model.config),
        copy.deepcopy(model.generation_config),
    )
    silent.config.eos_token_id = silent.generation_config.eos_token_id = LlamaConfig().eos_token_id
    assert stop_tokens(silent, tokenizer) == {tokenizer.eos_token_id}
    assert stop_tokens(silent) == {LlamaConfig().eos_token_id}


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
