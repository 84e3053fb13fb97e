"""The decode step against the transformers model with the same plan applied through hooks."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import DynamicCache
from wisparse.kernels.cuda.attention import CUDAAttentionTile, cuda_attention
from wisparse.kernels.cuda.product import CUDATile
from wisparse.kernels.errors import KernelError
from wisparse.kernels.gpu.captured_step import CapturedStep
from wisparse.kernels.gpu.step import GPUDecodeStep
from wisparse.kernels.gpu.step_tiles import Chosen, Never
from wisparse.kernels.model.decoder_weights import pack
from wisparse.kernels.model.static_cache import StaticCache
from wisparse.kernels.plan.block_rules import block_rules
from wisparse.kernels.plan.rotated_stream import with_rotated_stream
from wisparse.kernels.plan.rotating import bases_of_sites, rotated
from wisparse.kernels.triton.attention.short import ShortAttentionTile
from wisparse.method.plan import SparsityPlan
from wisparse.method.running.apply import applied

from ...conftest import FAMILIES, make_calibration, make_method, make_protocol, make_tiny_model
from ..triton_cases import DEVICE, SMALL_TILES

PROMPT, NEW = 18, 2  # past the window of 16 that the mistral model has


def make_plan(model, method, sparsity=0.4):
    return make_method(method).plan(make_calibration(model), sparsity)


def step_of(model, plan, batch, tiles=SMALL_TILES):
    with rotated(model, bases_of_sites(plan.block_plans()) if plan else None):
        weights = pack(model)
        if plan:
            proxied = {block: rule.group for block, rule in plan.proxies.items()}
            weights = pack(model, plan.gate_thresholds, None, {*plan.signs, *plan.routers}, proxied)
        rules = block_rules(plan, weights.shape, weights.device, weights.dtype)
        weights, rules = with_rotated_stream(weights, rules)
    cache = StaticCache.for_model(model, weights.shape, batch, PROMPT + NEW)
    return GPUDecodeStep(weights, rules, cache, tiles)


@torch.no_grad()
def both_decode(model, plan, batch=1, tiles=SMALL_TILES, tokens=NEW):
    """(logits of the model, logits of the step), (tokens, batch, vocabulary); row r has 3·r % 12 of padding."""
    model = model.to(DEVICE)
    generator = torch.Generator().manual_seed(3)
    prompt = torch.randint(1, 128, (batch, PROMPT), generator=generator).to(DEVICE)
    new = torch.randint(1, 128, (batch, NEW), generator=generator)[:, :tokens].to(DEVICE)
    first = (3 * torch.arange(batch) % 12).to(DEVICE)
    mask = (torch.arange(PROMPT, device=DEVICE) >= first[:, None]).long()
    past = DynamicCache()  # without a configuration it keeps what has left the window, too
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    model(input_ids=prompt, attention_mask=mask, position_ids=positions, past_key_values=past)
    step = step_of(model, plan, batch, tiles)
    step.cache.fill(past, first)
    expected, found = [], []
    sparse = partial(applied, model, plan, replace(make_protocol("decode_only"), rows_sharing=batch))
    with sparse() if plan else nullcontext():
        for ids in new.T:
            mask = torch.cat([mask, mask.new_ones(batch, 1)], 1)
            arguments = {"attention_mask": mask, "position_ids": mask.sum(1, keepdim=True) - 1}
            expected.append(model(input_ids=ids[:, None], past_key_values=past, **arguments).logits[:, 0])
            found.append(step(ids.contiguous()).clone())
    assert step.cache.length.item() == PROMPT + tokens
    return torch.stack(expected), torch.stack(found)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_thresholds_with_left_padding(family):
    model = make_tiny_model(family, blocks=2 if family == "llama" else 1)
    expected, found = both_decode(model, make_plan(model, "teal"), batch=2)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "dense"), [("qwen2", "q k v o"), ("llama", "gate up"), ("mistral", None)])
def test_dense_products_by_a_library(family, dense):
    """What reads all of its activation is torch's, what is listed is Triton's; either follows the other."""
    model = make_tiny_model(family, blocks=1)
    plan = None if dense is None else make_plan(model, "teal").without([f"0.{name}" for name in dense.split()])
    tiles = replace(SMALL_TILES, library=frozenset({"qkv", "o", "gate_up", "down"}))
    expected, found = both_decode(model, plan, 3, tiles)
    assert torch.allclose(found, expected, atol=1e-4)
    step = step_of(model, plan, 3, tiles)
    assert step.ran()["products"] == "torch and triton"
    taken = [launch.func.__name__ for launch in step.launches].count("library_product")
    assert taken == {"q k v o": 2, "gate up": 1, None: 4}[dense]


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, "wina", "rsparse", "cats", "chess", "topk_guided"])
def test_every_kind_of_plan(method):
    model = make_tiny_model("qwen2", blocks=1)
    expected, found = both_decode(model, make_plan(model, method) if method else None)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, "relu_zeros"])
def test_a_relu_model(method):
    model = make_tiny_model("llama", blocks=1, activation="relu")
    expected, found = both_decode(model, make_plan(model, method, 0.3) if method else None)
    assert torch.allclose(found, expected, atol=1e-4)


ALL = "qkv o gate_up down"
LISTING = {
    "teal": ("qkv", "o", "gate_up", ALL),
    "wina": ("qkv down", "o gate_up"),
    "topk_guided": (ALL,),
    None: (ALL,),
}
"""Products that list their channels themselves: each of them under every plan, and beside such as do not."""


def listing_themselves(names: str):
    tile = CUDATile(warps=2, cluster=2, unroll=2)
    cuda = Chosen(dict.fromkeys(names.split(), tile), head_blocks=3 if names == ALL else 0)
    return replace(SMALL_TILES, cuda=cuda if names else Never())


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_kernels_run")
@pytest.mark.parametrize("method", LISTING)
def test_products_that_list_their_channels_themselves(method):
    """The same decode, dense too; the second token behind what the first one left where all do, head too."""
    model = make_tiny_model("qwen2", blocks=1).half()
    plan = make_plan(model, method) if method else None
    _, expected = both_decode(model, plan, tiles=listing_themselves(""))
    for names in LISTING[method]:
        tokens = NEW if names == ALL else 1
        _, found = both_decode(model, plan, tiles=listing_themselves(names), tokens=tokens)
        assert torch.allclose(found, expected[:tokens], atol=4e-3), names


@pytest.mark.usefixtures("cuda_kernels_run")
def test_products_that_list_their_channels_themselves_save_launches():
    """gate_up alone has nobody to list down's channels for."""
    model = make_tiny_model("qwen2", blocks=1).half().to(DEVICE)
    plan = make_plan(model, "teal")
    launches = {
        names: len(step_of(model, plan, 1, listing_themselves(names)).launches)
        for names in ("", *LISTING["teal"])
    }
    saved = {names: launches[""] - count for names, count in launches.items()}
    assert saved == {"": 0, "qkv": 1, "o": 0, "gate_up": 0, ALL: 2}


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_kernels_run")
@pytest.mark.parametrize("family", ["qwen2", "mistral", "qwen3"])
def test_attention_that_writes_the_whole_activation(family):
    """Before o in CUDA C++, a dense o, and not before o's lists: with a bias, a window and norms of heads."""
    model = make_tiny_model(family, blocks=1, heads=(3, 1)).half()
    plan = make_plan(model, "teal")
    attention = CUDAAttentionTile(warps=1, cluster=2, unroll=2, queries=2)
    o = {"o": CUDATile(warps=2, cluster=2, unroll=2)}
    plain = replace(SMALL_TILES, cuda=Chosen(o), attention=ShortAttentionTile(step=16))
    tiles = replace(plain, cuda=Chosen(o, attention))
    for of in (plan, None):
        found, expected = (both_decode(model, of, tiles=each)[1] for each in (tiles, plain))
        assert torch.allclose(found, expected, atol=1e-3)
    launched = {}
    for name, of, products in (("cuda", plan, o), ("dense", None, {}), ("listed", plan, {})):
        launches = step_of(model, of, 1, replace(tiles, cuda=Chosen(products, attention))).launches
        launched[name] = any(one.func is cuda_attention for one in launches)
    assert launched == {"cuda": True, "dense": True, "listed": False}


@pytest.mark.slow
def test_short_contexts_have_an_attention_of_their_own():
    model = make_tiny_model("mistral", blocks=2)
    tiles = replace(SMALL_TILES, attention=ShortAttentionTile(step=16))
    expected, found = both_decode(model, make_plan(model, "teal"), tiles=tiles)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_attention_may_add_the_partial_sums():
    model = make_tiny_model("qwen2", blocks=1)
    tiles = replace(SMALL_TILES, consumer_adds_qkv=True)
    expected, found = both_decode(model, make_plan(model, "teal"), tiles=tiles)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_all_kinds_of_rules_side_by_side():
    """One block drops by top-k here, by threshold there, keeps all of a third; its MLP has a low-rank path, and
    the next block is gated."""
    model = make_tiny_model("llama", blocks=2)
    plans = {name: make_plan(model, name) for name in ("teal", "wina", "rsparse", "cats")}
    source = {"q": "wina", "v": "teal", "o": "wina", "gate": "teal", "up": "rsparse", "down": "wina"}
    rules = {f"0.{p}": plans[method].rules[f"0.{p}"] for p, method in source.items()}
    rules |= {"1.o": plans["rsparse"].rules["1.o"], "1.gate": plans["teal"].rules["1.gate"]}
    gates = {1: plans["cats"].gate_thresholds[1]}
    plan = SparsityPlan(plans["teal"].shapes, rules, gates)
    expected, found = both_decode(model, plan, batch=2)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_a_step_that_is_repeated_is_bitwise_the_same():
    model = make_tiny_model("llama", blocks=1).to(DEVICE)
    step = step_of(model, make_plan(model, "teal"), batch=1)
    ids = torch.tensor([5], device=DEVICE)
    logits = []
    for _ in range(2):
        step.cache.length.zero_()
        logits.append(step(ids).clone())
    assert torch.equal(*logits)


def test_bad_input_ends_in_one_line():
    model = make_tiny_model("llama", blocks=2).to(DEVICE)
    plan = make_plan(model, "cats")
    weights = pack(model)
    cache = StaticCache.for_model(model, weights.shape, 1, 8)
    rules = block_rules(plan, weights.shape, weights.device, weights.dtype)
    with pytest.raises(KernelError, match="gated and predicted blocks"):
        GPUDecodeStep(weights, rules, cache, SMALL_TILES)
    with pytest.raises(KernelError, match="rules for 1 blocks"):
        GPUDecodeStep(weights, rules[:1], cache, SMALL_TILES)
    step = GPUDecodeStep(weights, block_rules(None, weights.shape, weights.device, weights.dtype), cache)
    with pytest.raises(KernelError, match="expected int64"):
        step(torch.zeros(1, dtype=torch.int32, device=DEVICE))
    if DEVICE.type == "cpu":
        with pytest.raises(KernelError, match="need a CUDA GPU"):
            CapturedStep(step, feed_back=False)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="CUDA graphs need a GPU")
def test_a_captured_step_is_the_step():
    model = make_tiny_model("llama").to(DEVICE)
    plan, ids = make_plan(model, "teal"), torch.tensor([7], device=DEVICE)
    plain, captured = step_of(model, plan, 1), step_of(model, plan, 1)
    greedy = CapturedStep(step_of(model, plan, 1), feed_back=True)
    graph = CapturedStep(captured, feed_back=False)
    greedy.tokens.copy_(ids)
    for _ in range(3):
        expected = plain(ids)
        assert torch.equal(graph(ids), expected)
        assert torch.equal(greedy.replay(), expected)
        ids = expected.argmax(-1)
        assert torch.equal(greedy.tokens, ids)


@pytest.mark.parametrize("method", [None, "teal", "wina", "rsparse", "chess"])
def test_it_says_which_language_each_part_ran_in(method):
    model = make_tiny_model("llama", blocks=1).to(DEVICE)
    plan = None if method is None else make_plan(model, method)
    expected = dict.fromkeys(("attention", "norms", "products"), "triton") | {"lm_head": "torch"}
    expected |= {"selection": "triton"} if method == "wina" else {}
    assert step_of(model, plan, 1, replace(SMALL_TILES, cuda=Never())).ran() == expected


def test_it_says_where_cuda_ran():
    model = make_tiny_model("llama", blocks=1).to(DEVICE)
    plan = make_plan(model, "teal")
    for names, products, norms in (
        ("o", "cuda and triton", "triton"),
        ("qkv o gate_up down", "cuda", "cuda and triton"),
    ):
        cuda = Chosen(dict.fromkeys(names.split(), CUDATile(warps=2)), CUDAAttentionTile(warps=1))
        found = step_of(model, plan, 1, replace(SMALL_TILES, cuda=cuda)).ran()
        assert found == {"products": products, "norms": norms, "attention": "cuda", "lm_head": "torch"}
    cuda = Chosen(dict.fromkeys(ALL.split(), CUDATile(warps=2)), CUDAAttentionTile(warps=1), head_blocks=3)
    found = step_of(model.half(), plan, 1, replace(SMALL_TILES, cuda=cuda)).ran()
    assert found == dict.fromkeys(("products", "attention", "lm_head"), "cuda") | {"norms": "cuda and triton"}
