"""Chat formats of the papers' models, as templates and texts of our own: these are what reaches a model."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance
from wisparse.method.tokens import stop_tokens
from wisparse.repro.evaluation.language_model import SparseLM
from wisparse.repro.evaluation.passes.chat import TODAY

FORMATS = Path(__file__).with_name("chat_formats")
TALK = [
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "Three."},
    {"role": "user", "content": "And now?"},
]


@dataclass(frozen=True)
class Format:
    """Special tokens of a published tokenizer; `ends`: what an answer ends with."""

    bos: str | None
    eos: str
    ends: str
    markers: tuple[str, ...]


# Llama 3.1's generation_config.json names <|eot_id|> besides the tokenizer's own end; Qwen2.5 has no bos token.
KNOWN = {
    "llama3.1-8b": Format(
        "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>")
    ),
    "mistral-7b": Format("<s>", "</s>", "</s>", ("[INST]", "[/INST]")),
    "qwen2.5-7b": Format(None, "<|im_end|>", "<|im_end|>", ("<|im_start|>",)),
}


@pytest.fixture(params=KNOWN)
def chat(request, model, tokenizer):
    """A model of this repository whose tokenizer has that format's special tokens, template and ends."""
    known = KNOWN[request.param]
    model, tokenizer = copy.deepcopy(model), copy.deepcopy(tokenizer)
    names = {*(name for name in (known.bos, known.eos, known.ends) if name), *known.markers}
    tokenizer.add_special_tokens(
        {"bos_token": known.bos, "eos_token": known.eos, "additional_special_tokens": sorted(names)}
        if known.bos
        else {"eos_token": known.eos, "additional_special_tokens": sorted(names)}
    )
    if known.bos is None:
        tokenizer.bos_token = None
    tokenizer.chat_template = (FORMATS / f"{request.param}.jinja").read_text(encoding="utf-8").rstrip("\n")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids([known.eos, known.ends])
    text = (FORMATS / f"{request.param}.txt").read_text(encoding="utf-8")
    return known, SparseLM(model, tokenizer), text.replace("@TODAY@", TODAY.strftime("%d %b %Y"))


def test_a_talk_becomes_the_published_format(chat):
    _, language_model, expected = chat
    assert language_model.apply_chat_template(TALK) == expected


def test_what_begins_a_text_stands_once_and_every_marker_is_one_token(chat):
    known, language_model, expected = chat
    tokenizer, tokens = language_model.tokenizer, language_model.tok_encode(expected)
    for name in {known.ends, *known.markers}:
        assert tokens.count(tokenizer.convert_tokens_to_ids(name)) == expected.count(name) > 0
    if known.bos is None:
        assert language_model.start_tokens == []
        assert tokens[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    else:
        assert tokens.count(tokenizer.bos_token_id) == 1
        assert tokens[0] == tokenizer.bos_token_id
    assert tokenizer.decode(tokens) == expected


def test_an_answer_ends_where_the_format_ends_it(chat):
    known, language_model, _ = chat
    model, tokenizer = language_model.model, language_model.tokenizer
    end, other = tokenizer.convert_tokens_to_ids([known.ends, known.eos])
    assert {end, other} <= set(stop_tokens(model, tokenizer))
    # The model now writes the end and nothing else.
    model.lm_head.register_forward_hook(
        lambda _, __, logits: torch.zeros_like(logits).index_fill(-1, torch.tensor([end]), 1.0)
    )
    asked = Instance("generate_until", {}, ("How many?", {"until": ["\n\n"], "max_gen_toks": 5}), 0)
    assert language_model.generate_until([asked], disable_tqdm=True) == [""]


def test_a_model_that_can_think_aloud_is_asked_not_to(chat):
    """Qwen3's template opens a thought unless told otherwise, and short answers would end inside of it."""
    _, language_model, _ = chat
    language_model.tokenizer.chat_template = "{{ 'no thought' if enable_thinking is false else 'a thought' }}"
    assert language_model.apply_chat_template(TALK) == "no thought"
