"""Tiles of CUDA C++ products chosen inside a decode step, dry: a clock that tells what it was asked to time."""

import json

import pytest
import torch
from wisparse.kernels.bench.parts.model_shapes import MODEL_SHAPES
from wisparse.kernels.cuda.product import CUDATile
from wisparse.kernels.errors import KernelError
from wisparse.kernels.gpu import cuda_tiles
from wisparse.kernels.gpu.step_tiles import default_tiles
from wisparse.kernels.gpu.tuning import steps as cuda_tuning
from wisparse.kernels.gpu.tuning.cache import TuningCache
from wisparse.kernels.gpu.tuning.steps import cuda_candidates, step_clock, tuned_step_tiles
from wisparse.kernels.gpu.tuning.timing import median_milliseconds
from wisparse.kernels.model.decoder import products_of
from wisparse.kernels.model.decoder_weights import pack
from wisparse.kernels.model.static_cache import StaticCache
from wisparse.kernels.plan.block_rules import block_rules

from ....conftest import make_tiny_model
from ...triton_cases import DEVICE
from ..test_triton_step import make_plan

WANTED = {
    "qkv": CUDATile(warps=2, cluster=2),
    "o": CUDATile(warps=4),
    "gate_up": CUDATile(warps=2, cluster=3),
    "down": CUDATile(warps=4, cluster=2, unroll=3),
}


class Clock:
    """The more products have their wanted tile, the faster a step; refuses one tile as a driver does."""

    def __init__(self, refused=None):
        self.refused, self.steps = refused, []

    def __call__(self, step):
        if self.refused in step.tiles.cuda.products.values():
            raise KernelError("cuda_product: CUDA answered CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES")
        self.steps.append(step.tiles.cuda.products)
        return 9.0 - sum(step.tiles.cuda.products[name] == tile for name, tile in WANTED.items())


@pytest.fixture
def setting(monkeypatch):
    """Weights, rules and cache of a tiny model, and a device that is said to run CUDA C++."""
    for module in (cuda_tiles, cuda_tuning):
        monkeypatch.setattr(module, "multiprocessors_of", lambda _: 4)
    monkeypatch.setattr(cuda_tiles, "runs_cuda_products", lambda _: True)
    monkeypatch.setattr(
        cuda_tuning, "cuda_candidates", lambda one, *_: [WANTED[one.name], CUDATile(warps=8, unroll=2)]
    )

    def make(method):
        model = make_tiny_model("llama", blocks=2).half()
        plan = make_plan(model, method)
        model = model.to(DEVICE)
        weights = pack(model, plan.gate_thresholds)
        cache = StaticCache.for_model(model, weights.shape, 1, 32)
        return weights, block_rules(plan, weights.shape, weights.device, weights.dtype), cache

    return make


@pytest.mark.slow
def test_every_product_is_tuned_beside_the_others_and_once(setting, tmp_path):
    stored, clock = TuningCache(tmp_path), Clock()
    arguments = setting("teal")
    tiles = tuned_step_tiles(*arguments, 0.52, stored, clock)
    assert tiles.cuda.products == WANTED
    assert len(clock.steps) == 4 * 3  # the default and two candidates each
    assert clock.steps[-1]["gate_up"] == WANTED["gate_up"]
    kept = json.loads(stored.path.read_text())
    assert len(kept) == 4
    assert all("| cuda |" in key and key.endswith("| 0.5") for key in kept)
    assert tuned_step_tiles(*arguments, 0.48, stored, clock).cuda.products == WANTED
    assert len(clock.steps) == 4 * 3


def test_a_tile_that_the_driver_refuses_is_passed_over(setting, tmp_path):
    clock = Clock(refused=WANTED["down"])
    tiles = tuned_step_tiles(*setting("teal"), 0.5, TuningCache(tmp_path), clock)
    assert tiles.cuda.products["down"] != WANTED["down"]
    assert tiles.cuda.products["o"] == WANTED["o"]


@pytest.mark.slow
def test_launches_in_triton_have_their_own_tiles_tuned(setting, tmp_path, monkeypatch):
    """Low-rank paths take the products over lists, thresholds none of them."""
    asked = []

    def tuned(shape, dtype, device, batch, sparsity, capacity, cache):
        asked.append((batch, sparsity, capacity))
        return default_tiles(shape, batch, capacity)

    monkeypatch.setattr(cuda_tuning, "tuned_tiles", tuned)
    tuned_step_tiles(*setting("teal"), 0.5, TuningCache(tmp_path), Clock())
    assert asked == []
    tuned_step_tiles(*setting("rsparse"), 0.5, TuningCache(tmp_path), Clock())
    assert asked == [(1, 0.5, 32)]


@pytest.mark.parametrize("name", MODEL_SHAPES)
def test_thread_blocks_of_candidates_run_at_once(name):
    for one in products_of(MODEL_SHAPES[name]):
        tiles = cuda_candidates(one, 132)
        assert len(set(tiles)) == len(tiles) >= 15
        assert all(tile.blocks(one.tiled_widths) <= 132 * tile.resident for tile in tiles)
        assert all(tile.resident * tile.warps <= 64 for tile in tiles)


def test_every_timed_call_is_prepared_outside_of_its_time(monkeypatch):
    """The median of the times between the events on either side of a call."""
    order, now = [], iter([0.0, 5.0, 10.0, 11.0, 20.0, 23.0])

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            order.append("event")
            self.at = next(now)

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    found = median_milliseconds(lambda: order.append("call"), 3, lambda: order.append("prepare"))
    assert found == 3.0
    assert order == ["prepare", "event", "call", "event"] * 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_timing_a_step_without_a_gpu_ends_in_one_line(setting):
    from wisparse.kernels.gpu.step import GPUDecodeStep

    with pytest.raises(KernelError, match="CUDA graphs need a CUDA GPU"):
        step_clock(GPUDecodeStep(*setting("teal")))
