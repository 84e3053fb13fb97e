"""The decode step that is timed without a model: it computes, and reads as many bytes as it says."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from wisparse.kernels.bench import gpu_step as gpu_step_bench
from wisparse.kernels.bench.gpu_step import Setting, main, rows, step_row
from wisparse.kernels.bench.parts.drawn import (
    DrawnPlan,
    bytes_read,
    cache_bytes,
    dropping,
    filled_cache,
    random_weights,
)
from wisparse.kernels.bench.parts.measured_rows import append
from wisparse.kernels.bench.parts.model_shapes import family_named, shape_of
from wisparse.kernels.cuda.product import CUDATile
from wisparse.kernels.errors import KernelError
from wisparse.kernels.gpu.step import GPUDecodeStep
from wisparse.kernels.gpu.step_tiles import Chosen
from wisparse.kernels.model.decoder import FAMILIES, DecoderShape
from wisparse.kernels.model.static_cache import StaticCache
from wisparse.kernels.plan.block_rules import block_rules

from ..triton_cases import DEVICE, SMALL_TILES

SHAPE = DecoderShape(1, 128, 128, 1, 1, 128, 128, 1e-5, (None,))


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_kernels_run")
@pytest.mark.parametrize(("bits", "sparsity"), [(8, 0.5), (4, 0.0), (4, 0.5)])
def test_a_step_of_random_weights(bits, sparsity):
    weights = random_weights(SHAPE, bits, bits, torch.bfloat16, DEVICE)
    rules = dropping(SHAPE, sparsity, DEVICE) or block_rules(None, SHAPE, DEVICE, weights.dtype)
    size = (1, 1, 1, 4, 128)
    cache = StaticCache(
        *(torch.zeros(size, dtype=torch.bfloat16, device=DEVICE) for _ in range(2)),
        *(torch.zeros(1, dtype=torch.int32, device=DEVICE) for _ in range(2)),
        cosines=torch.ones(4, 128, device=DEVICE),
        sines=torch.zeros(4, 128, device=DEVICE),
    )
    tile = CUDATile(columns=128, warps=4, cluster=2, unroll=2)
    tiles = replace(SMALL_TILES, cuda=Chosen(dict.fromkeys(("qkv", "o", "gate_up", "down", "lm_head"), tile)))
    step = GPUDecodeStep(weights, rules, cache, tiles)
    logits = step(torch.tensor([3], device=DEVICE))
    assert logits.isfinite().all()
    assert 0.05 < logits.std() < 20
    assert step.cuda_products == ["qkv", "o", "gate_up", "down", "lm_head"]
    values = 128 * 128 * 8 * bits // 8  # qkv 3, o 1, gate and up 2, down 1, the head 1
    read = bytes_read(weights, sparsity)
    assert values * (1 - sparsity) <= read <= 1.2 * values
    kept = [(rule.thresholds == 0).float().mean() for plan in rules for rule in plan.rules.values()]
    assert all(share == 1 - sparsity for share in kept)


def test_rows_are_added_to_a_table_under_one_header(tmp_path):
    for milliseconds in ("2.5", "2.4"):
        append({"bits": 8, "group": None, "ms": milliseconds}, tmp_path / "steps.csv")
    assert (tmp_path / "steps.csv").read_text() == "bits,group,ms\n8,,2.5\n8,,2.4\n"


def test_a_table_with_other_columns_is_left_as_it_is(tmp_path):
    append({"bits": 8, "ms": "2.5"}, tmp_path / "steps.csv")
    with pytest.raises(KernelError, match="has the columns bits, ms, not bits, batch, ms"):
        append({"bits": 8, "batch": 1, "ms": "2.5"}, tmp_path / "steps.csv")
    assert (tmp_path / "steps.csv").read_text() == "bits,ms\n8,2.5\n"


def test_a_batch_leaves_unread_what_all_of_its_rows_drop():
    plan = DrawnPlan(SHAPE, 0.5, 3, DEVICE)
    assert plan.expected_sparsity("0.q") == 0.5
    for rule in plan.block_plans()[0].rules.values():
        assert rule.thresholds.isinf().float().mean() == 0.125


@pytest.mark.slow
@pytest.mark.parametrize(("dense", "unread"), [((), 0.25), (("0.q",), 0.0)])
def test_a_row_of_a_batch_counts_the_tokens_of_all_rows(monkeypatch, dense, unread):
    """Where the engine had better compute a batch densely, the row says that nothing is left unread."""
    asked = []

    def dense_for_a_batch(*given):
        asked.append(given)
        return frozenset(dense and SHAPE.shapes())

    monkeypatch.setattr(gpu_step_bench, "dense_for_a_batch", dense_for_a_batch)
    weights = random_weights(SHAPE, 16, 16, torch.float16, DEVICE)
    cache = filled_cache(SHAPE, torch.float16, DEVICE, 4, batch=2)
    times = iter((4.0, 2.0, 3.0))

    def clock(step):
        step(torch.tensor([3, 5], device=DEVICE))
        cache.length.fill_(4)
        return next(times)

    row = step_row(Setting("a", torch.float16, 16, 16, 0.5, 4, 2), weights, cache, 4e12, clock=clock)
    assert (row["batch"], row["sparsity"], float(row["unread"])) == (2, 0.5, unread)
    assert (float(row["ms"]), float(row["tok_s"])) == (2.0, 1000.0)
    assert float(row["gb_s"]) == pytest.approx(bytes_read(weights, unread) / 2e6, abs=0.1)
    assert asked[0][0].sparsity == 0.5
    assert (asked[0][1], asked[0][2].type) == (2, DEVICE.type)


def test_weights_have_the_biases_and_norms_of_their_family():
    for name, family in FAMILIES.items():
        (block,) = random_weights(SHAPE, 8, 8, torch.bfloat16, DEVICE, family=family).blocks
        assert (block.qkv_bias is not None) == (name == "qwen2")
        assert (block.query_norm is not None) == (block.key_norm is not None) == (name == "qwen3")


def test_sizes_are_those_of_a_models_own_file():
    assert (shape_of("qwen3-8b").blocks, family_named("qwen3-8b").model_type) == (36, "qwen3")
    with pytest.raises(KernelError, match=r"no sizes of a model 'hub'; take of .*llama3\.1-8b, "):
        shape_of("hub")


def test_few_bits_of_a_batch_are_refused(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--bits", "16", "8", "--batches", "1", "2"])
    assert exit.value.code == 2
    assert "weights in few bits are read for one row; give --bits 16 for a batch" in capsys.readouterr().err


def test_what_does_not_fit_or_run_is_said_and_the_rest_is_measured(monkeypatch, capsys):
    """Settings by shape, bits, context and sparsity; a context that there is no memory for is left out."""
    for name, stand_in in {
        "read_bandwidth": lambda _: 4e12,
        "free_memory": lambda _: 2 * cache_bytes(SHAPE, torch.bfloat16, 100, 1),
        "shape_of": lambda _: SHAPE,
        "family_named": lambda _: FAMILIES["qwen2"],
    }.items():
        monkeypatch.setattr(gpu_step_bench, name, stand_in)

    def row(setting, weights, cache, *_):
        assert weights.blocks[0].qkv_bias is not None
        assert int(cache.length) == setting.context
        if (setting.bits, setting.sparsity) == (4, 0.5):
            raise KernelError("no kernel")
        return {"setting": (setting.shape, setting.bits, setting.head_bits, setting.context, setting.sparsity)}

    monkeypatch.setattr(gpu_step_bench, "step_row", row)
    options = SimpleNamespace(
        shapes=["a", "b"], dtype="bfloat16", bits=[16, 4], head_bits=None, batches=[1], contexts=[4, 1000],
        sparsities=[0.0, 0.5], tune=False,
    )  # fmt: skip
    found = [row["setting"] for row in rows(options, DEVICE)]
    assert found == [
        (name, bits, head, 4, sparsity)
        for name in "ab"
        for bits, head, sparsity in ((16, 16, 0.0), (16, 16, 0.5), (4, 8, 0.0))
    ]
    said = capsys.readouterr().err.splitlines()
    assert said.count("left out, no memory: a, 16 bits, batch 1, context 1000") == 1
    assert said.count("left out: b, 4 bits, batch 1, context 4, 50%: no kernel") == 1
    assert len(said) == 2 * (1 + 2)
