"""Execution: token policies in scoring and generation, traffic, and plans that do not fit."""

import pytest
import torch
from wisparse.method.errors import UserError
from wisparse.method.plan import PlanError, ProjectionRule, SparsityPlan
from wisparse.method.projections import split_key
from wisparse.method.running.apply import applied

from ...conftest import make_calibration, make_method, make_protocol, make_tiny_model
from .given_tokens import ids_of, inputs_of


@pytest.fixture
def planned(tiny_model):
    return tiny_model, make_method("teal_uniform").plan(make_calibration(tiny_model), 0.5)


def test_generated_tokens_are_sparse_and_the_prompt_is_not(planned):
    model, plan = planned
    prompt, new = ids_of(2, 9), 6
    with applied(model, plan, make_protocol("decode_only")) as session:
        model.generate(prompt, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
        report = session.report()
    # The last generated token is never an input.
    assert report["tokens"] == 2 * (9 + new - 1)
    assert report["sparse_tokens"] == 2 * (new - 1)
    assert report["realised_sparsity"] == pytest.approx(0.5, abs=0.15)
    assert report["realised_sparsity_all_tokens"] < report["realised_sparsity"]


def test_decoding_with_a_cache_equals_scoring_the_whole_sequence(planned):
    model, plan = planned
    ids, prompt = ids_of(1, 12), 5
    with applied(model, plan, make_protocol("decode_only")) as session:
        session.prompt_lengths = torch.tensor([prompt])
        whole = model(input_ids=ids).logits
        session.prompt_lengths = None
        output = model(input_ids=ids[:, :prompt], use_cache=True)
        steps = [output.logits]
        for position in range(prompt, ids.shape[1]):
            output = model(input_ids=ids[:, position : position + 1], past_key_values=output.past_key_values)
            steps.append(output.logits)
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-4)


@pytest.mark.parametrize("name", ["half", "skip_first", "wina", "all"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_neither_logits_nor_counts(planned, name, side):
    model, plan = planned
    ids, padding = ids_of(1, 11), 4
    with applied(model, plan, make_protocol(name)) as session:
        alone, counts = model(input_ids=ids).logits, session.report()
    filler = torch.zeros(1, padding, dtype=torch.long)
    order = (filler, ids) if side == "left" else (ids, filler)
    mask = torch.cat([torch.full_like(part, int(part is ids)) for part in order], 1)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with applied(model, plan, make_protocol(name)) as session:
        padded = model(input_ids=torch.cat(order, 1), attention_mask=mask, position_ids=positions).logits
        assert session.report()["sparse_tokens"] == counts["sparse_tokens"]
        assert session.report()["tokens"] == 11
        assert session.report()["realised_sparsity"] == pytest.approx(counts["realised_sparsity"], abs=2e-3)
    place = slice(padding, None) if side == "left" else slice(0, 11)
    assert torch.allclose(padded[:, place], alone, atol=1e-4)


@pytest.mark.parametrize("name", ["teal_uniform", "rsparse", "chess_ffn"])
def test_one_block_alone_is_what_a_plan_with_its_rules_alone_does(llama, name):
    plan = make_method(name).plan(make_calibration(llama), 0.4)
    alone = SparsityPlan(
        plan.shapes,
        {key: rule for key, rule in plan.rules.items() if split_key(key)[0] == 1},
        {block: thresholds for block, thresholds in plan.gate_thresholds.items() if block == 1},
    )
    ids, protocol = ids_of(2, 12), make_protocol("half")
    dense = llama(input_ids=ids).logits
    with applied(llama, alone, protocol):
        expected = llama(input_ids=ids).logits
    with applied(llama, plan, protocol) as session:
        every = llama(input_ids=ids).logits
        with session.only_blocks(1):
            assert torch.equal(llama(input_ids=ids).logits, expected)
        with session.only_blocks():
            assert torch.equal(llama(input_ids=ids).logits, dense)
        assert torch.equal(llama(input_ids=ids).logits, every)
    assert not torch.equal(expected, dense)
    assert not torch.equal(expected, every)


@pytest.mark.parametrize("name", ["teal_uniform", "wina", "chess_ffn"])
@pytest.mark.parametrize("protocol", ["half", "all"])
def test_a_dense_pass_to_compare_with_does_not_count(llama, name, protocol):
    plan = make_method(name).plan(make_calibration(llama), 0.4)
    with applied(llama, plan, make_protocol(protocol)) as session:
        llama(input_ids=ids_of(2, 12))
        before = session.report()
        with session.only_blocks():
            llama(input_ids=ids_of(3, 16))
        assert session.report() == before
    assert before["realised_sparsity"] > 0.3


def test_a_plan_for_another_model_is_refused(llama):
    plan = make_method("teal_uniform").plan(make_calibration(llama), 0.5)
    with (
        pytest.raises(PlanError, match="another model"),
        applied(make_tiny_model("llama", blocks=3), plan, make_protocol("all")),
    ):
        pass


def test_a_mask_that_is_not_two_dimensional_is_refused(planned):
    model, plan = planned
    with applied(model, plan, make_protocol("all")), pytest.raises(UserError, match="attention mask"):
        model(input_ids=ids_of(1, 4), attention_mask=torch.ones(1, 1, 4, 4))


@pytest.mark.parametrize("damage", ["missing", "truncated", "not json", "other format"])
def test_a_damaged_plan_is_recognised(llama, tmp_path, damage):
    folder = tmp_path / "plan"
    make_method("teal_uniform").plan(make_calibration(llama), 0.5).save(folder)
    if damage == "missing":
        (folder / "plan.safetensors").unlink()
    elif damage == "truncated":
        stored = folder / "plan.safetensors"
        stored.write_bytes(stored.read_bytes()[:-10])
    elif damage == "not json":
        (folder / "plan.json").write_text("{")
    else:
        document = folder / "plan.json"
        document.write_text(document.read_text().replace('"format": 2', '"format": 99'))
    with pytest.raises(PlanError):
        SparsityPlan.load(folder)


def test_saving_leaves_no_temporary_files(llama, tmp_path):
    plan = make_method("teal_uniform").plan(make_calibration(llama), 0.5)
    plan.save(tmp_path / "plan")
    plan.save(tmp_path / "plan")  # again, over the first
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


def test_a_rule_needs_exactly_one_mask():
    with pytest.raises(ValueError, match="either thresholds or top_k"):
        ProjectionRule()
    with pytest.raises(ValueError, match="either thresholds or top_k"):
        ProjectionRule(thresholds=torch.ones(2), top_k=1, weights=torch.ones(2))
    with pytest.raises(ValueError, match="weights"):
        ProjectionRule(top_k=1)


@pytest.mark.parametrize("name", ["half", "all", "skip_first", "decode_only"])
def test_a_prompt_read_in_chunks_is_the_prompt_read_at_once(planned, name):
    model, plan = planned
    ids, lengths = ids_of(2, 14), torch.tensor([14, 11])
    mask = (torch.arange(14) >= 14 - lengths[:, None]).long()
    positions = (mask.cumsum(1) - 1).clamp_min(0)

    def read(*ends):
        found, cache, begin = [], None, 0
        with applied(model, plan, make_protocol(name)) as session:
            session.prompt_lengths = lengths
            for end in ends:
                output = model(
                    input_ids=ids[:, begin:end], attention_mask=mask[:, :end], use_cache=True,
                    position_ids=positions[:, begin:end], past_key_values=cache,
                )  # fmt: skip
                found.append(output.logits)
                cache, begin = output.past_key_values, end
            return torch.cat(found, 1), session.report()["sparse_tokens"]

    whole, counted = read(14)
    chunks, counted_in_chunks = read(2, 7, 8, 14)
    assert counted_in_chunks == counted
    assert torch.allclose(whole[mask.bool()], chunks[mask.bool()], atol=1e-4)


@pytest.mark.parametrize("name", ["half", "all", "decode_only"])
@pytest.mark.parametrize(
    "way", [{"prefill_chunk_size": 4}, {"use_cache": False}, {"prompt_lookup_num_tokens": 3}, {"num_beams": 1}]
)
def test_generate_counts_the_same_prompt_whichever_way_it_reads(llama, name, way):
    """Chunks, no cache, and candidates of assisted generation, several of which come in one pass."""
    plan = make_method("teal_uniform").plan(make_calibration(llama), 0.5)
    prompt = ids_of(1, 4).repeat(1, 3)
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with applied(llama, plan, make_protocol(name)) as session:
        session.prompt_lengths = torch.tensor([12])
        tokens, cache, expected = prompt, None, prompt
        for _ in range(8):
            output = llama(input_ids=tokens, past_key_values=cache, use_cache=True)
            tokens, cache = output.logits[:, -1:].argmax(-1), output.past_key_values
            expected = torch.cat([expected, tokens], 1)
    with applied(llama, plan, make_protocol(name)):
        assert llama.generate(prompt, **settings, **way).tolist() == expected.tolist()
    assert "generate" not in vars(llama)


def test_a_turn_behind_a_cache_is_prompt(llama):
    plan = make_method("teal_uniform").plan(make_calibration(llama), 0.5)
    ids = ids_of(1, 12)
    with applied(llama, plan, make_protocol("decode_only")) as session:
        cache = llama(input_ids=ids[:, :5], use_cache=True).past_key_values
        llama.generate(ids, past_key_values=cache, max_new_tokens=3, min_new_tokens=3, pad_token_id=0)
        assert session.report()["tokens"] == 12 + 2
        assert session.report()["sparse_tokens"] == 2
        with pytest.raises(UserError, match="prompt_lengths"):
            llama(input_ids=ids[:, :3], past_key_values=cache)


@pytest.mark.parametrize("method", ["teal_uniform", "wina", "cats", "rsparse"])
def test_a_pass_under_a_plan_has_gradients_of_what_is_kept(method):
    model = make_tiny_model("llama")
    settings = ["method.search=false"] if method == "rsparse" else []
    plan = make_method(method, *settings).plan(make_calibration(model), 0.3)
    model.requires_grad_(True)
    with applied(model, plan, make_protocol("all")):
        model(torch.arange(6)[None]).logits.sum().backward()
    found = model.model.layers[0].mlp.down_proj.weight.grad
    assert found.isfinite().all()
    assert found.any()


def test_a_batch_reads_what_any_of_its_rows_keeps(planned):
    """Rows with masks of their own: the traffic of two together is that of the union of their masks."""
    model, plan = planned
    ids = ids_of(4, 6)
    x, report = inputs_of(model, SparsityPlan(plan.shapes, {"0.q": plan.rules["0.q"]}), ids, rows_sharing=2)
    union = ((x[0::2] != 0) | (x[1::2] != 0)).double().mean().item()
    sizes = {name: out * inner for name, (out, inner) in plan.shapes.items()}
    share = sizes["0.q"] / sum(sizes.values())
    assert report["realised_sparsity"] == pytest.approx((1 - union) * share, rel=1e-6)
    assert report["tokens"] == 2 * 6


@pytest.mark.parametrize("prompt", [12, 1])
def test_a_second_prompt_within_generate_is_refused(llama, prompt):
    """Guidance reads the last token alone beside the prompt: what follows counted as prompt, and was dense."""
    plan, ids = make_method("teal_uniform").plan(make_calibration(llama), 0.5), ids_of(1, 12)
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "guidance_scale": 1.5}
    with (
        applied(llama, plan, make_protocol("half")),
        pytest.raises(UserError, match=r"reads a second prompt.*guidance_scale"),
    ):
        llama.generate(ids, **settings, negative_prompt_ids=ids[:, :prompt])
    with applied(llama, plan, make_protocol("half")) as session:
        llama.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    assert session.report()["tokens"] == 15
