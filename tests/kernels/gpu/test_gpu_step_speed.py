"""The decode step that is timed without a model: it computes, and reads as many bytes as it says."""

from dataclasses import replace

import pytest
import torch
from wisparse.kernels.bench.gpu_step import append, bytes_read, dropping, random_weights
from wisparse.kernels.cuda.product import CUDATile
from wisparse.kernels.gpu.step import GPUDecodeStep
from wisparse.kernels.gpu.step_tiles import Chosen
from wisparse.kernels.model.decoder import DecoderShape
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
