"""Continued training: factors by hand, straight-through gradients, and a tiny run that ends in zeros."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer
from wisparse.method.errors import UserError
from wisparse.method.running.apply import applied
from wisparse.repro.embedded import train, training_text
from wisparse.repro.embedded.corpus import package_sources
from wisparse.repro.train import continued, continued_real
from wisparse.repro.train.command_line import MODELS
from wisparse.repro.train.recipes import CONTINUATIONS, START, Continuation

from ...conftest import make_calibration, make_method, make_protocol

KNOWN = Tokenizer.from_file(str(MODELS / START / "tokenizer.json"))


def test_the_factor_is_flat_then_rises_along_a_sine_from_stage_to_stage():
    how = Continuation("", stages=((0.2, 1.0), (0.6, 3.0), (1.0, 4.0)))
    assert [how.factor(progress) for progress in (0.0, 0.19)] == [1.0, 1.0]
    # In the middle of a stage the sine is at its middle, after a quarter at 1/2 − √2/4.
    assert how.factor(0.4) == pytest.approx(2.0)
    assert how.factor(0.3) == pytest.approx(1.0 + 2.0 * (0.5 - 2**0.5 / 4))
    assert how.factor(0.6) == pytest.approx(3.0)
    assert how.factor(1.0) == 4.0
    assert Continuation("").factor(0.5) == 0.0


def test_top_k_keeps_the_largest_and_lets_all_gradients_through():
    x = torch.tensor([[3.0, -1.0, 0.5, -4.0]], requires_grad=True)
    sparse = continued.straight_through(x, 0.5)
    assert sparse.tolist() == [[3.0, 0.0, 0.0, -4.0]]
    (sparse * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert x.grad.tolist() == [[1.0, 2.0, 3.0, 4.0]]
    assert torch.equal(continued.straight_through(x, 1.0), x)


def test_of_neighbours_as_many_are_kept_and_all_gradients_pass():
    x = torch.tensor([[[3.0, -1.0, -4.0, 5.0], [0.25, 0.5, 9.0, 8.0]]], requires_grad=True)
    assert continued.straight_through(x, 0.5).tolist() == [[[0.0, 0.0, -4.0, 5.0], [0.0, 0.0, 9.0, 8.0]]]
    sparse = continued.straight_through(x, 0.5, neighbours=2)
    assert sparse.tolist() == [[[3.0, 0.0, 0.0, 5.0], [0.0, 0.5, 9.0, 0.0]]]
    sparse.sum().backward()
    assert x.grad.tolist() == [[[1.0] * 4] * 2]


def test_the_penalty_is_the_mean_of_what_enters_down(llama):
    ids = torch.randint(128, (2, 8), generator=torch.Generator().manual_seed(0))
    seen = []
    handles = [
        b.mlp.down_proj.register_forward_pre_hook(lambda _, x: seen.append(x[0])) for b in llama.model.layers
    ]
    plain = train.token_losses(llama, ids)
    for handle in handles:
        handle.remove()
    with continued.changed(llama, Continuation("", stages=((1.0, 0.7),))) as as_trained:
        as_trained.advance(0.3)
        assert as_trained.loss(llama, ids) == pytest.approx(
            (plain + 0.7 * torch.stack([x.abs().mean() for x in seen]).mean()).item()
        )
    assert not llama.model.layers[0].mlp.down_proj._forward_pre_hooks


def test_some_of_the_files_are_a_share_of_both_texts(tmp_path, monkeypatch):
    texts = ["import os\n"] * 10, ["import re\n"] * 4
    monkeypatch.setattr(training_text, "training_and_held_out_texts", lambda: texts)
    monkeypatch.setattr(training_text, "HELD_OUT_LENGTH", 4)
    facts = [training_text.prepare(tmp_path, KNOWN, files)[3] for files in (5, 1, None, 5)]
    assert [(fact["training_files"], fact["held_out_files"]) for fact in facts] == [
        (5, 2),
        (1, 1),
        (10, 4),
        (5, 2),
    ]
    monkeypatch.setattr(training_text, "HELD_OUT_LENGTH", 512)
    with pytest.raises(UserError, match="are fewer than a window of 512"):
        training_text.prepare(tmp_path, KNOWN, 1)


def test_a_kept_text_of_another_tokenizer_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(training_text, "training_and_held_out_texts", lambda: (["import os\n"] * 9,) * 2)
    monkeypatch.setattr(training_text, "HELD_OUT_LENGTH", 4)
    training_text.prepare(tmp_path)  # with a tokenizer of its own
    with pytest.raises(UserError, match="is of another tokenizer; name another folder: --text-cache DIR"):
        training_text.prepare(tmp_path, KNOWN)


def test_held_out_loss_is_of_the_tokens_that_there_are(monkeypatch):
    """Also of fewer windows than a batch of them, and of a last batch that is not full."""
    monkeypatch.setattr(train, "HELD_OUT_LENGTH", 4)
    monkeypatch.setattr(train, "token_losses", lambda _, ids: ids.float().mean())
    ids = torch.arange(34 * 4 + 3)
    assert train.held_out_nats(None, ids[:11]) == (pytest.approx(3.5), 8)
    assert train.held_out_nats(None, ids) == (pytest.approx(67.5), 136)
    assert train.held_out_nats(None, ids, 33) == (pytest.approx(65.5), 132)


def test_a_model_that_did_not_stay_finite_is_not_saved(tmp_path, llama):
    llama.model.norm.weight.fill_(torch.nan)
    held_out = torch.zeros(2 * train.HELD_OUT_LENGTH, dtype=torch.int32)
    with pytest.raises(UserError, match="one did not stay finite in its training; nothing of it is kept"):
        train.evaluate_and_save(llama, KNOWN, held_out, {"model": "one", "text": {}}, tmp_path / "one")
    assert not (tmp_path / "one").exists()


def test_weights_that_were_half_written_have_no_card_of_a_training_before(tmp_path, llama, monkeypatch):
    (tmp_path / "training.json").write_text("{}")
    monkeypatch.setattr(
        type(llama), "save_pretrained", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full"))
    )
    held_out = torch.zeros(2 * train.HELD_OUT_LENGTH, dtype=torch.int32)
    facts = {"held_out_bytes": 9, "held_out_tokens": 3}
    with pytest.raises(OSError, match="full"):
        train.evaluate_and_save(llama, KNOWN, held_out, {"model": "one", "text": facts}, tmp_path)
    assert not (tmp_path / "training.json").exists()


@pytest.mark.parametrize("option", ["--tokens", "--files"])
@pytest.mark.parametrize("number", ["0", "-5", "1.5"])
def test_no_tokens_are_refused_before_anything_is_read(tmp_path, monkeypatch, capsys, option, number):
    """A training of no tokens took one step, and its card said so many."""
    monkeypatch.setattr(sys, "argv", ["continued", str(tmp_path), "--device", "cpu", f"{option}={number}"])
    with pytest.raises(SystemExit) as ended:
        continued.main()
    assert ended.value.code == 2
    assert f"{number} is not a whole number from 1 up" in capsys.readouterr().err


def test_the_real_model_is_not_fetched_where_no_training_can_begin(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(continued_real, "start", lambda: pytest.fail("it was asked for"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["continued_real", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        continued_real.main()
    assert ended.value.code == 2
    assert "training needs a CUDA GPU" in capsys.readouterr().err


@pytest.mark.parametrize(("attention", "masked"), [(continued_real.ATTENTION, False), ("sdpa", True)])
def test_the_real_model_is_compiled_without_a_mask(llama, attention, masked, monkeypatch):
    """Flash attention takes none; it is the same loss."""
    ids = torch.randint(128, (2, 8), generator=torch.Generator().manual_seed(0))
    expected, masks = train.token_losses(llama, ids), []

    def noted(graph, _):
        calls = graph.graph.find_nodes(op="call_function", target=F.scaled_dot_product_attention)
        masks.extend(call.kwargs["attn_mask"] is not None for call in calls)
        return graph

    monkeypatch.setattr(llama.config, "_attn_implementation", attention)
    torch.testing.assert_close(torch.compile(train.token_losses, backend=noted)(llama, ids), expected)
    assert masks == [masked] * len(llama.model.layers)


@pytest.mark.slow
def test_any_model_can_be_trained_on_with_its_own_tokenizer(tmp_path, monkeypatch):
    """SmolLM2 is: name, weights and tokenizer are its own, batches smaller than the embedded model's."""
    monkeypatch.setattr(training_text, "training_and_held_out_texts", lambda: (["import os\n" * 60] * 3,) * 2)
    for module in (training_text, train, continued):
        monkeypatch.setattr(module, "HELD_OUT_LENGTH", 32)
    text = training_text.prepare(tmp_path / "cache", KNOWN)
    tokenizer = AutoTokenizer.from_pretrained(MODELS / START, eos_token="def")
    start = continued.Start("other", MODELS / "mistral-mini", tokenizer)
    monkeypatch.setattr(continued_real, "start", lambda: start)
    whole, own = continued_real.recipe_of("relu", 64), continued.recipe(64)
    assert (whole.batch * continued_real.SMALLER, whole.learning_rate) == (own.batch, own.learning_rate)
    settings = dataclasses.replace(whole, batch=2, length=32)
    record = continued.train_from(start, "relu", settings, text, tmp_path, "cpu")
    assert (record["model"], record["starts_from"], record["steps"]) == ("other-relu", "other", 1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "other-relu")
    assert (model.config.model_type, model.config.hidden_act) == ("mistral", "relu")
    assert AutoTokenizer.from_pretrained(tmp_path / "other-relu").eos_token == "def"


def check_lte(folder, record, held_out):
    """The method finds the routers of a trained folder, and chooses the neurons that they did in training."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    plan = make_method("lte").plan(make_calibration(model, sequences=2), 0.01)
    assert {(rule.threshold, rule.weight.dtype, rule.weight.shape) for rule in plan.routers.values()} == {
        (0.0, torch.bfloat16, (28, 320))
    }
    with applied(model, plan, make_protocol("all")):
        assert continued.zero_shares(model, held_out) == pytest.approx(record["zeros_by_block"])


@pytest.mark.slow
def test_a_tiny_run_ends_in_models_with_zeros_of_the_same_tokens(tmp_path, monkeypatch):
    texts = [text[:3000] for _, text in package_sources(Path(json.__file__).parent)][:2]
    monkeypatch.setattr(training_text, "training_and_held_out_texts", lambda: (texts, texts))
    monkeypatch.setattr(training_text, "HELD_OUT_LENGTH", 32)
    monkeypatch.setattr(train, "HELD_OUT_LENGTH", 32)
    monkeypatch.setattr(train, "HELD_OUT_WINDOWS", 32)
    text = training_text.prepare(tmp_path / "cache", KNOWN)
    monkeypatch.setattr(continued, "HELD_OUT_LENGTH", 32)
    monkeypatch.setattr(continued, "WINDOWS_FOR_ZEROS", 2)
    own = dataclasses.replace(train.RECIPES["llama-mini"], batch=2, length=32)
    monkeypatch.setattr(continued, "recipe", lambda tokens: dataclasses.replace(own, training_tokens=tokens))
    found = {
        name: continued.train_and_save(name, 2 * 2 * 32, text, tmp_path, "cpu")
        for name in ("dense", "prosparse", "qsparse", "lte")
    }
    assert len({(record["tokens_seen"], json.dumps(record["recipe"])) for record in found.values()}) == 1
    assert max(found["dense"]["zeros_by_block"]) == 0.0
    assert min(found["prosparse"]["zeros_by_block"]) > 0.2
    assert 0.0 < min(found["lte"]["zeros_by_block"]) <= max(found["lte"]["zeros_by_block"]) < 1.0
    check_lte(tmp_path / "llama-mini-lte", found["lte"], text[2])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "llama-mini-prosparse")
    assert model.config.hidden_act == CONTINUATIONS["prosparse"].activation == "relu"
