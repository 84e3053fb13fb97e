"""The library face: a plan in one call, the model sparse in a context, the engine equal to both, all undone."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
import wisparse
from transformers import AutoTokenizer
from wisparse.kernels.errors import KernelError
from wisparse.method.errors import UserError
from wisparse.method.plan import PlanError
from wisparse.method.quantisation.quantisers import Int8
from wisparse.method.quantised_model import quantised

from ..conftest import ROOT, make_calibration, make_tiny_model

TOKENIZER = ROOT / "repro" / "embedded" / "models" / "llama-mini"
IDS = torch.randint(128, (4, 32), generator=torch.Generator().manual_seed(1))
PROMPT = IDS[:1, :7]


def planned(model, method="teal", **settings):
    return wisparse.plan(model, None, IDS, method=method, sparsity=0.5, search="minimal", **settings)


def continued(model):
    return model.generate(PROMPT, max_new_tokens=12, do_sample=False, eos_token_id=None)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["teal", "wina", "wisparse", "equal_loss", "chess", "rsparse"])
def test_engine_and_context_continue_alike_and_leave_the_model_as_it_was(tiny_model, method):
    dense = continued(tiny_model)
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    plan = planned(tiny_model, method)
    with wisparse.sparse(tiny_model, plan) as session:
        sparse = continued(tiny_model)
    assert 0.3 < session.report()["realised_sparsity"] < 0.7
    with wisparse.engine(tiny_model, plan) as engine:
        fast = engine.generate(PROMPT, new_tokens=12)
        report = engine.report()
    assert torch.equal(fast, sparse)
    assert report["bytes_per_token"] < report["dense_bytes_per_token"]
    assert report["new_tokens"] == 12
    assert torch.equal(continued(tiny_model), dense)
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.stride() == before[name].stride()


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True])
def test_within_a_quantisation_the_engine_reads_the_stored_weights(llama, sparse):
    """And continues as the model does, whose linears hold the dequantised values."""
    with quantised(llama, Int8("int8", lm_head="int8").weights(make_calibration(llama))):
        plan = planned(llama) if sparse else None
        with wisparse.sparse(llama, plan) if sparse else nullcontext():
            expected = continued(llama)
        with wisparse.engine(llama, plan) as engine:
            assert torch.equal(engine.generate(PROMPT, new_tokens=12), expected)
            assert engine.report()["dense_bytes_per_token"] < sum(one.nbytes for one in llama.parameters()) / 3


def test_a_model_that_is_being_trained_can_be_planned_and_stays_so(llama):
    llama.train().requires_grad_(True)
    llama.lm_head.requires_grad_(False)
    planned(llama, "equal_loss")
    assert llama.training
    assert all(part.requires_grad != (part is llama.lm_head.weight) for part in llama.parameters())


def test_the_engine_without_a_plan_is_dense(llama):
    with wisparse.engine(llama) as engine:
        assert torch.equal(engine.generate(PROMPT, new_tokens=12), continued(llama))
        assert engine.report()["realised_sparsity"] == 0.0


def test_the_model_is_whole_after_an_error_within_the_engine(llama):
    strides = [linear.weight.stride() for linear in llama.modules() if isinstance(linear, torch.nn.Linear)]
    with pytest.raises(KeyError), wisparse.engine(llama, planned(llama)):
        raise KeyError
    assert strides == [part.weight.stride() for part in llama.modules() if isinstance(part, torch.nn.Linear)]


def test_tokens_of_the_prompt_follow_the_policy(llama):
    plan = planned(llama)
    shares = {}
    for tokens in ("all", "half", "decode_only"):
        with wisparse.sparse(llama, plan, tokens=tokens) as session:
            llama(IDS[:1, :8], use_cache=False)
        shares[tokens] = session.report()["sparse_token_share"]
    assert shares == {"all": 1.0, "half": 0.5, "decode_only": 0.0}


def test_a_saved_plan_is_the_plan(llama, tmp_path):
    plan = planned(llama, "wisparse")
    plan.save(tmp_path / "plan.safetensors")
    loaded = wisparse.load_plan(tmp_path / "plan.safetensors")
    assert loaded.provenance.method == "wisparse"
    with wisparse.sparse(llama, plan):
        expected = continued(llama)
    with wisparse.sparse(llama, loaded):
        assert torch.equal(continued(llama), expected)
    with pytest.raises(PlanError, match=r"nowhere\.safetensors"):
        wisparse.load_plan(tmp_path / "nowhere.safetensors")
    with pytest.raises(PlanError, match="another model"), wisparse.sparse(make_tiny_model("llama", 3), plan):
        pass


@pytest.mark.slow
def test_texts_are_packed_as_the_suite_packs_them():
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(TOKENIZER, dtype=torch.float32)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    settings = {"method": "chess", "sequences": 2, "length": 64}
    once = wisparse.plan(model, tokenizer, text, **settings)
    again = wisparse.plan(model, tokenizer, [text], **settings)
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])[:126].view(2, 63)
    begin = torch.full((2, 1), tokenizer.bos_token_id)
    by_hand = wisparse.plan(model, None, torch.cat([begin, ids], dim=1), method="chess")
    for block, thresholds in once.gate_thresholds.items():
        assert torch.equal(thresholds, again.gate_thresholds[block])
        assert torch.equal(thresholds, by_hand.gate_thresholds[block])


def test_a_report_needs_something_generated(llama):
    with wisparse.engine(llama) as engine, pytest.raises(KernelError, match="call generate first"):
        engine.report()


def test_the_face_is_what_it_says():
    assert set(wisparse.__all__) <= set(dir(wisparse))
    assert all(getattr(wisparse, name) is not None for name in wisparse.__all__)
    with pytest.raises(AttributeError, match="no attribute 'plans'"):
        wisparse.plans  # noqa: B018


def test_a_second_plan_within_one_is_refused(llama):
    plan = planned(llama)
    expected = llama(PROMPT).logits
    inner = {
        "a plan": lambda: wisparse.sparse(llama, planned(make_tiny_model("llama"))),
        "an engine": lambda: wisparse.engine(llama),
        "the making of a plan": lambda: nullcontext(planned(llama)),
    }
    for what, enter in inner.items():
        with (
            wisparse.sparse(llama, plan),
            pytest.raises(UserError, match=f"a plan acts on this model already, and {what}"),
            enter(),
        ):
            pass
    with (
        wisparse.engine(llama) as engine,
        wisparse.sparse(llama, plan),
        pytest.raises(UserError, match="a plan"),
    ):
        engine.generate(PROMPT, new_tokens=2)
    assert torch.equal(llama(PROMPT).logits, expected)


def test_two_threads_cannot_apply_two_plans_at_once(llama):
    plan = planned(llama)

    def apply() -> None:
        with wisparse.sparse(llama, plan):
            pass

    with wisparse.sparse(llama, plan), ThreadPoolExecutor(1) as other, pytest.raises(UserError, match="a plan"):
        other.submit(apply).result()


def test_the_engine_reads_prompts_and_reports_at_rest(llama):
    plan = planned(llama)
    with wisparse.engine(llama, plan) as engine:
        expected, report = engine.generate(PROMPT, new_tokens=8), engine.report()
    llama.train()
    llama.model.layers[0].eval()
    for block in llama.model.layers:
        block.self_attn.attention_dropout = 0.9
    llama.gradient_checkpointing_enable()
    with wisparse.engine(llama, plan) as engine:
        assert torch.equal(engine.generate(PROMPT, new_tokens=8), expected)
        assert engine.report()["realised_sparsity"] == report["realised_sparsity"]
    assert llama.training
    assert not llama.model.layers[0].mlp.training
    assert llama.model.layers[1].mlp.training


def test_the_report_of_a_padded_prompt_is_that_of_the_prompt(tiny_model):
    with wisparse.engine(tiny_model, planned(tiny_model)) as engine:
        expected = engine.generate(PROMPT, new_tokens=8)
        alone = engine.report()["realised_sparsity"]
        padded = torch.nn.functional.pad(PROMPT, (9, 0))
        mask = torch.nn.functional.pad(torch.ones_like(PROMPT), (9, 0))
        assert torch.equal(engine.generate(padded, mask, new_tokens=8)[:, 9:], expected)
        assert engine.report()["realised_sparsity"] == pytest.approx(alone, abs=1e-9)


def test_padding_without_its_mask_is_refused(llama):
    """Transformers guesses the mask from the padding token; the engine read padding as text."""
    llama.generation_config.pad_token_id = 3
    ids = PROMPT.masked_fill(PROMPT == 3, 4)
    padded = torch.nn.functional.pad(ids, (2, 0), value=3)
    with wisparse.engine(llama) as engine:
        with pytest.raises(KernelError, match="holds the padding token 3, and no attention_mask"):
            engine.generate(padded, new_tokens=5)
        tokens = engine.generate(padded, (padded != 3).long(), new_tokens=5)
        assert torch.equal(tokens[:, 2:], engine.generate(ids, new_tokens=5))
    expected = llama.generate(padded, max_new_tokens=5, do_sample=False)
    assert torch.equal(tokens, expected)


def test_the_report_tells_a_rows_tokens_from_its_padding(llama):
    with wisparse.engine(llama, batch=2) as engine:
        tokens = engine.generate(IDS[:2, :7], new_tokens=8, stop_tokens=())[:, 7:]
        assert engine.report()["new_tokens_by_row"] == [8, 8]
        stop = next(token for token in tokens[0].tolist() if token not in tokens[1])
        engine.generate(IDS[:2, :7], new_tokens=8, stop_tokens=[stop])
        report = engine.report()
    assert report["new_tokens_by_row"] == [tokens[0].tolist().index(stop) + 1, 8]
    assert report["new_tokens"] == 8


def test_sequences_that_predict_nothing_are_refused(llama):
    with pytest.raises(UserError, match="sequences of 1 token predict nothing"):
        wisparse.plan(llama, None, IDS[:, :1], method="teal_uniform")


def test_low_rank_factors_take_the_models_type(llama):
    plan = planned(llama, "rsparse")
    rounded = {name: rule.to("cpu", torch.bfloat16) for name, rule in plan.rules.items()}
    half = make_tiny_model("llama").bfloat16()
    logits = []
    for each in (plan, replace(plan, rules=rounded)):
        with wisparse.sparse(half, each, tokens="all"):
            logits.append(half(PROMPT).logits)
    assert torch.equal(*logits)
    assert not torch.equal(logits[0], half(PROMPT).logits)


def test_after_an_engine_in_inference_mode_the_model_can_be_trained():
    for plan in (None, planned(make_tiny_model("llama"), "chess"), planned(make_tiny_model("llama"))):
        model = make_tiny_model("llama").requires_grad_(True)
        with torch.inference_mode(), wisparse.engine(model, plan) as engine:
            engine.generate(PROMPT, new_tokens=2)
        assert not any(parameter.is_inference() for parameter in model.parameters())
        model(IDS, labels=IDS).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("method", ["teal", "chess"])
def test_a_model_under_a_plan_has_gradients(llama, method):
    plan = planned(llama, method)
    with wisparse.sparse(llama, plan, tokens="all") as session:
        expected, report = llama(IDS).logits, session.report()
    llama.requires_grad_(True)
    with wisparse.sparse(llama, plan, tokens="all") as session:
        output = llama(IDS, labels=IDS)
        assert session.report() == report
    assert torch.equal(output.logits, expected)
    output.loss.backward()
    gradients = [parameter.grad for parameter in llama.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert gradients[-1].any()


def test_a_sparsity_of_numpy_is_a_number_as_any(llama, tmp_path):
    plan = wisparse.plan(llama, None, IDS, method="teal_uniform", sparsity=np.float32(0.5))
    plan.save(tmp_path / "plan.safetensors")
    assert wisparse.load_plan(tmp_path / "plan.safetensors").provenance.sparsity == 0.5
