"""One model in three sizes: shapes, one recipe, and a tiny run through its command line."""

import dataclasses
import json
import sys

import pytest
from safetensors.torch import load_file
from wisparse.repro.embedded import train, training_text
from wisparse.repro.embedded.names import MODELS
from wisparse.repro.embedded.recipes import RECIPES
from wisparse.repro.train import scaling
from wisparse.repro.train.recipes import START


def test_sizes_differ_in_width_alone_and_the_second_has_the_shapes_of_the_embedded_model():
    recipes = {width: scaling.recipe(width, 1000) for width in scaling.WIDTHS}
    shapes = {width: recipe.architecture.to_dict() for width, recipe in recipes.items()}
    assert shapes[320] == RECIPES[START].architecture.to_dict()
    parts = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    assert [[shape.pop(part) for part in parts] for shape in shapes.values()] == [
        [160, 448, 5, 1],
        [320, 896, 10, 2],
        [640, 1792, 20, 4],
    ]
    assert shapes[160] == shapes[320] == shapes[640]
    alike = [dataclasses.replace(recipe, architecture=None) for recipe in recipes.values()]
    assert alike[0] == alike[1] == alike[2]
    assert alike[0].training_tokens == 1000
    with pytest.raises(ValueError, match="a width of 200 has no whole num_attention_heads"):
        scaling.recipe(200, 1000)


@pytest.mark.slow
def test_the_command_trains_the_sizes_that_are_named_on_the_same_text(tmp_path, monkeypatch, capsys):
    texts = [f"def f{number}(x):\n    return x + {number}\n" for number in range(200)]
    monkeypatch.setattr(training_text, "training_and_held_out_texts", lambda: (texts, texts))
    for module in (train, training_text):
        monkeypatch.setattr(module, "HELD_OUT_LENGTH", 32)
    whole = scaling.recipe

    def tiny(width, tokens):
        return dataclasses.replace(whole(width, tokens), optimizer="adamw", batch=2, length=32, warmup_steps=1)

    monkeypatch.setattr(scaling, "recipe", tiny)
    options = ["--tokens", "128", "--files", "100", "--text-cache", str(tmp_path / "cache"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["scaling", str(tmp_path), "llama-160", "llama-320", *options])
    scaling.main()
    cards = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("llama-160", "llama-320")]
    assert [card["model"] for card in cards] == ["llama-160", "llama-320"]
    assert cards[0]["steps"] == 2
    assert {card["tokens_seen"] for card in cards} == {128}
    assert cards[0]["text"] == cards[1]["text"]
    assert cards[0]["recipe"] == cards[1]["recipe"]
    assert not (tmp_path / "llama-640").exists()
    stored = (tmp_path / "llama-160" / "tokenizer.json").read_text()
    assert json.loads(stored)["model"] == json.loads((MODELS / START / "tokenizer.json").read_text())["model"]
    assert load_file(tmp_path / "llama-160" / "model.safetensors")["model.norm.weight"].shape == (160,)
    training_text.prepare(tmp_path / "own")
    monkeypatch.setattr(
        sys, "argv", ["scaling", str(tmp_path), "--text-cache", str(tmp_path / "own"), "--device", "cpu"]
    )
    with pytest.raises(SystemExit) as ended:
        scaling.main()
    assert ended.value.code == 2
    assert "is of another tokenizer; name another folder" in capsys.readouterr().err
