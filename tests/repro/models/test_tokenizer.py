"""Tokenizers read text as their file says, whatever class a label names; every token has an embedding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from wisparse.checkpoint import load
from wisparse.method.errors import UserError
from wisparse.repro.models.checkpoint import find_checkpoint, load_model
from wisparse.repro.models.tokenizer import PROBE, check_token_ids, load_tokenizer

from ...conftest import ROOT
from ..conftest import LLAMA_MINI
from .test_models import settings
from .test_random_models import shrunk

CODE = "def f(a, b):\n    return a + b  # 2023"


def edit(file: Path, **values: object) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | values))


def as_stored(folder: Path, text: str) -> list[int]:
    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids


def local(folder: Path):
    return load_model(find_checkpoint(settings(folder))).tokenizer


def borrowed(folder: Path):
    return load_model(find_checkpoint(shrunk("llama3.1-8b", tokenizer=str(folder)))).tokenizer


def of_the_library(folder: Path):
    return load(str(folder), "cpu", "float32")[1]


@pytest.mark.parametrize("route", [local, borrowed, of_the_library])
def test_a_label_of_another_class_changes_nothing(checkpoint, route, caplog):
    edit(checkpoint / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")
    tokenizer = route(checkpoint)
    ids = tokenizer.encode(CODE, add_special_tokens=False)
    assert ids == as_stored(LLAMA_MINI, CODE)
    assert (ids[0], ids[1], tokenizer.decode(ids)) == (327, 284, CODE)
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0
    assert "reads text otherwise than tokenizer.json, which is taken as it is stored" in caplog.text


@pytest.mark.parametrize("name", ["llama-mini", "mistral-mini", "qwen-mini"])
def test_the_embedded_models_read_text_as_they_were_trained(name):
    """Qwen2's own class splits numbers into single digits."""
    folder = ROOT / "repro/embedded/models" / name
    assert load_tokenizer(folder).encode(PROBE, add_special_tokens=False) == as_stored(folder, PROBE)


def test_a_begin_token_that_the_file_does_not_know_is_refused(checkpoint):
    edit(checkpoint / "tokenizer_config.json", bos_token="<s>")
    with pytest.raises(
        UserError, match=r"otherwise than tokenizer\.json says; correct the class and the tokens"
    ):
        load_tokenizer(checkpoint)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("added_tokens.json", {"self": 292}),
        ("added_tokens.json", {"<|more|>": 8192}),
        ("tokenizer_config.json", {"extra_special_tokens": ["self"]}),
        ("special_tokens_map.json", {"additional_special_tokens": ["self"]}),
    ],
)
def test_tokens_added_beside_the_file_are_refused(checkpoint, file, content):
    """The word is in none of the probes."""
    edit(checkpoint / file, **content)
    with pytest.raises(UserError, match=r"otherwise than tokenizer\.json says.*added_tokens\.json"):
        load_tokenizer(checkpoint)


def test_the_truncation_of_a_file_is_not_taken_for_another_reading(checkpoint, caplog):
    stored = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    stored.enable_truncation(4)
    stored.save(str(checkpoint / "tokenizer.json"))
    assert load_tokenizer(checkpoint).encode(CODE) == as_stored(LLAMA_MINI, CODE)
    assert not caplog.text


def test_tokens_without_an_embedding_are_refused(llama, tokenizer):
    with pytest.raises(UserError, match="tokens up to 8191, the model embeds 128; they do not belong"):
        check_token_ids(llama, tokenizer, Path("here"))


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("config.json", "eos_token_id", 8192),
        ("config.json", "bos_token_id", -1),
        ("generation_config.json", "eos_token_id", [0, 99999]),
    ],
)
def test_special_tokens_without_an_embedding_are_refused(checkpoint, file, name, value):
    edit(checkpoint / file, **{name: value})
    with pytest.raises(UserError, match=rf"{name} .* is none of the model's 8192 tokens"):
        load_model(find_checkpoint(settings(checkpoint)))
