"""Execution: token policies in scoring and generation, traffic, and plans that do not fit."""

from dataclasses import replace

import pytest
import torch
from wisparse.method.errors import UserError
from wisparse.method.hooks import hooked
from wisparse.method.plan import PlanError, ProjectionRule, SparsityPlan
from wisparse.method.projections import split_key
from wisparse.method.rules import SharedTopK
from wisparse.method.running.apply import applied

from ...conftest import make_calibration, make_method, make_protocol, make_tiny_model


@pytest.fixture
def planned(tiny_model):
    return tiny_model, make_method("teal_uniform").plan(make_calibration(tiny_model), 0.5)


def ids_of(rows, length, seed=5):
    return torch.randint(1, 128, (rows, length), generator=torch.Generator().manual_seed(seed))


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


def test_traffic_by_hand():
    model = make_tiny_model("llama")
    shapes = make_calibration(model).shapes
    # Everything dropped in block 0's down and q; the rest dense.
    rules = {
        name: ProjectionRule(thresholds=torch.full((shapes[name][1],), torch.inf)) for name in ("0.down", "0.q")
    }
    with applied(model, SparsityPlan(shapes, rules), make_protocol("all")) as session:
        model(input_ids=ids_of(2, 10))
        report = session.report()
    block = 48 * 48 * 2 + 48 * 24 * 2 + 48 * 80 * 3
    dropped = 48 * 48 + 48 * 80
    assert report["realised_sparsity"] == pytest.approx(dropped / (2 * block))
    assert report["by_projection"]["down"] == pytest.approx(0.5)
    assert report["by_block"] == pytest.approx([dropped / block, 0.0])
    always = 5 * 48 + 48 * 128  # norms and lm_head
    assert report["dense_bytes_per_token"] == (2 * block + always) * 4
    assert report["bytes_per_token"] == pytest.approx((2 * block - dropped + always) * 4)


def test_zeros_that_tie_with_the_kth_score_count_as_skipped():
    """Three quarters of the neurons are 0, as behind a ReLU, and half of them should be kept, then all."""
    model = make_tiny_model("llama")
    shapes = make_calibration(model).shapes
    for block in model.model.layers:
        block.mlp.up_proj.weight[20:] = 0.0
    for k in (40, 80):
        rules = {f"{index}.down": ProjectionRule(top_k=k, weights=torch.ones(80)) for index in range(2)}
        ids = ids_of(1, 8)
        with applied(model, SparsityPlan(shapes, rules), make_protocol("all")) as session:
            sparse = model(input_ids=ids).logits
        assert session.report()["by_projection"]["down"] == pytest.approx(0.75)
        assert torch.equal(sparse, model(input_ids=ids).logits)


def test_a_dropped_gate_neuron_skips_up_and_down():
    model = make_tiny_model("llama")
    shapes = make_calibration(model).shapes
    thresholds = torch.zeros(80)
    thresholds[:20] = torch.inf
    plan = SparsityPlan(shapes, gate_thresholds={0: thresholds, 1: thresholds})
    ids = ids_of(1, 8)
    with applied(model, plan, make_protocol("all")) as session:
        sparse = model(input_ids=ids).logits
    assert session.report()["by_projection"] == pytest.approx(
        {"q": 0, "k": 0, "v": 0, "o": 0, "gate": 0, "up": 0.25, "down": 0.25}
    )
    for block in model.model.layers:
        block.mlp.down_proj.weight[:, :20] = 0.0
    assert torch.allclose(model(input_ids=ids).logits, sparse, atol=1e-6)


def test_low_rank_factors_are_counted_as_bytes():
    model = make_tiny_model("llama")
    calibration = make_calibration(model)
    method = make_method("rsparse", "method.search=false", "method.share=0.5")
    with applied(model, method.plan(calibration, 0.4), make_protocol("all")) as session:
        model(input_ids=calibration.input_ids)
    report = session.report()
    assert report["low_rank_share"] > 0.1
    weights = sum(out * inner for out, inner in calibration.shapes.values())
    read = (1 - report["realised_sparsity"] + report["low_rank_share"]) * weights
    always = report["dense_bytes_per_token"] / 4 - weights
    assert report["bytes_per_token"] == pytest.approx((read + always) * 4)


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
        document.write_text(document.read_text().replace('"format": 1', '"format": 99'))
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


def shared_plan(model, combined="sum", sparsity=0.5):
    """The uniform top-k of |x| with masks that a batch shares, as a method with that mask rule makes it."""
    method = replace(make_method("teal_uniform"), mask=SharedTopK(combined))
    return method.plan(make_calibration(model), sparsity)


def inputs_of(model, plan, ids, rows_sharing=1, prompts=None):
    """What q of the first block multiplies, (rows, length, channels), and a report; prompts: lengths."""
    found = []
    policy = replace(make_protocol("decode_only" if prompts else "all"), rows_sharing=rows_sharing)
    with applied(model, plan, policy) as session:
        session.prompt_lengths = torch.tensor(prompts) if prompts else None
        linear = model.get_submodule("model.layers.0.self_attn.q_proj")
        with hooked([linear.register_forward_hook(lambda _, inputs, __: found.append(inputs[0]))]):
            model(input_ids=ids)
        return found[0], session.report()


@pytest.mark.parametrize("combined", ["sum", "maximum"])
def test_rows_of_a_batch_share_a_mask(llama, combined):
    """Rows 0 and 1 do, row 2 has its own; bytes of a batch are those of one row."""
    ids = ids_of(3, 7)
    plan = shared_plan(llama, combined)
    x, report = inputs_of(llama, plan, ids, rows_sharing=2)
    kept = x != 0
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])
    k = plan.rules["0.q"].top_k
    assert (kept.sum(-1) == k).all()
    own, alone = inputs_of(llama, plan, ids)
    assert not torch.equal((own != 0)[0], (own != 0)[1])
    assert report["bytes_per_token"] == alone["bytes_per_token"]
    assert (report["tokens"], alone["tokens"]) == (2 * 7, 3 * 7)


def test_one_row_has_the_top_k_of_its_own(llama):
    shared = shared_plan(llama)
    plan = replace(shared, rules={name: replace(rule, shared=None) for name, rule in shared.rules.items()})
    (found, _), (expected, _) = inputs_of(llama, shared, ids_of(2, 7)), inputs_of(llama, plan, ids_of(2, 7))
    assert torch.equal(found, expected)


def test_tokens_that_are_dense_have_no_say_in_a_shared_mask(llama):
    """Where the other row's token is a prompt's, a row has the mask that it has alone."""
    ids, plan = ids_of(2, 8), shared_plan(llama)
    (beside_prompt, report), (together, _), (alone, _) = (
        inputs_of(llama, plan, ids, 2, (4, 8)),
        inputs_of(llama, plan, ids, 2, (4, 4)),
        inputs_of(llama, plan, ids[:1], 1, (4,)),
    )
    assert torch.equal(beside_prompt[0], alone[0])
    assert not torch.equal(together[0, 4:] != 0, alone[0, 4:] != 0)
    assert beside_prompt[1].all()
    assert report["sparse_tokens"] == 4


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
