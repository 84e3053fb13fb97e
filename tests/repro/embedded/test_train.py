"""The training of the embedded models, on a few files and for a few steps; and the cards of the real ones."""

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from wisparse.repro.embedded import card, corpus, train, training_text
from wisparse.repro.embedded.names import EMBEDDED, from_scratch
from wisparse.repro.embedded.recipes import Recipe

from ...conftest import ROOT

MODELS = sorted(path.name for path in card.MODELS.iterdir())

TINY = Recipe(
    LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        vocab_size=8192, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    ),
    optimizer="muon",
    training_tokens=12 * 4 * 64,
    learning_rate=1e-2,
    batch=4,
    length=64,
    warmup_steps=2,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_training_learns_saves_and_records(optimizer, tmp_path, monkeypatch):
    texts = [text for _, text in corpus.package_sources(Path(json.__file__).parent)]
    monkeypatch.setattr(training_text, "training_and_held_out_texts", lambda: (texts, texts))
    monkeypatch.setattr(training_text, "HELD_OUT_LENGTH", 32)
    monkeypatch.setattr(train, "HELD_OUT_LENGTH", 32)
    text = training_text.prepare(tmp_path / "cache")
    recipe = dataclasses.replace(TINY, optimizer=optimizer)
    record = train.train_and_save("tiny", recipe, text, tmp_path, "cpu")
    assert record["steps"] == 12
    assert record["held_out_perplexity"] < 0.9 * 8192  # a uniform guess has 8192
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny")
    assert len(tokenizer) <= model.config.vocab_size
    assert tokenizer.decode(tokenizer(texts[0]).input_ids) == texts[0]
    assert json.loads((tmp_path / "tiny/training.json").read_text()) == json.loads(json.dumps(record))


@pytest.mark.slow
def test_held_out_packages_are_never_trained_on():
    training, held_out = corpus.training_and_held_out_texts()
    assert len(held_out) > 1000
    assert not set(training) & set(held_out)
    assert len(set(training)) == len(training)


def test_every_epoch_visits_every_sequence_once():
    recipe = dataclasses.replace(TINY, batch=5)
    ids = torch.arange(64 * 21)
    starts = train.batches(ids, recipe, steps=8).flatten()
    first = starts[:20]
    assert first.unique().numel() == 20
    assert ((first - first[0]) % 64 == 0).all()


def test_the_learning_rate_is_a_trapezoid():
    shares = [train.learning_rate_share(step, 100, TINY) for step in range(100)]
    assert shares[0] == 0.5
    assert shares[10] == shares[49] == 1.0
    assert shares[99] == pytest.approx(0.02)
    assert all(earlier >= later for earlier, later in itertools.pairwise(shares[50:]))


@pytest.mark.parametrize("name", MODELS)
def test_the_card_says_what_was_measured(name):
    folder = card.MODELS / name
    read = {part: json.loads((folder / f"{part}.json").read_text()) for part in ("training", "card", "config")}
    made = card.card(name, read["training"], read["card"], read["config"])
    assert (folder / "README.md").read_text() == made
    assert read["training"]["held_out_perplexity"] <= (9.6 if name == "llama-mini" else 12.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_stored_weights_have_the_recorded_quality(name):
    """Held-out perplexity of the files in the repository is the one on their card."""
    folder = card.MODELS / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    input_ids = card.held_out_sample(AutoTokenizer.from_pretrained(folder))
    recorded = json.loads((folder / "card.json").read_text())
    assert card.perplexity(model, input_ids, {}) == pytest.approx(recorded["dense_perplexity"], rel=1e-3)


def test_the_weights_fit_the_limits_of_the_repository():
    sizes = [path.stat().st_size for path in card.MODELS.rglob("*.safetensors")]
    assert max(sizes) <= 16_000_000
    assert sum(sizes) <= 80_000_000


def test_the_relu_model_is_the_one_of_its_committed_card():
    """Every file of the folder that training wrote has the hash that stands in results/relu/cards.

    The tokenizer lies without the indentation that it was written with.
    """
    hashes = ROOT / "results" / "relu" / "cards" / "llama-mini-prosparse" / "sha256.txt"
    listed = dict(reversed(line.split()) for line in hashes.read_text().splitlines())
    assert sum(name.endswith(".safetensors") for name in listed) == 2
    for name, digest in listed.items():
        written = (card.MODELS / name).read_bytes()
        if name.endswith("/tokenizer.json"):
            written = json.dumps(json.loads(written), indent=2, ensure_ascii=False).encode()
        assert hashlib.sha256(written).hexdigest() == digest, name


def test_models_trained_on_from_another_are_told_from_others():
    assert from_scratch() == ["llama-mini", "mistral-mini", "qwen-mini"]
    assert EMBEDDED == {*from_scratch(), "llama-mini-prosparse"} == set(MODELS)
