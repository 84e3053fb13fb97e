"""Tuning and speed measurement, dry: one call of everything that a GPU would time."""

import errno
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from wisparse.kernels.bench.gpu_speed import attention_rows, listing_rows, product_rows, selection_rows
from wisparse.kernels.errors import KernelError
from wisparse.kernels.gpu.step_tiles import default_tiles
from wisparse.kernels.gpu.tuning import products as tuning
from wisparse.kernels.gpu.tuning.cache import TuningCache, bucket_of, tuning_key
from wisparse.kernels.gpu.tuning.products import candidates, tune, tuned_tiles
from wisparse.kernels.gpu.tuning.timing import graph_clock
from wisparse.kernels.gpu.tuning.workload import Workload
from wisparse.kernels.model.decoder import DecoderShape, products_of
from wisparse.kernels.triton.gemv_tiles import Tile
from wisparse.method.errors import UserError
from wisparse.repro.locks import held

from ...triton_cases import DEVICE, SMALL_TILES

SHAPE = DecoderShape(1, 48, 80, 4, 2, 12, 128, 1e-5, (None,))
LLAMA_8B = DecoderShape(32, 4096, 14336, 32, 8, 128, 128256, 1e-5, (None,) * 32)


class CountingClock:
    """Calls the function once; the n-th call has taken 100 − n µs, so that the last candidate wins."""

    def __init__(self):
        self.calls = 0

    def __call__(self, function, copies):
        function(copies - 1)
        self.calls += 1
        return 100.0 - self.calls


@pytest.mark.slow
def test_rows_say_what_was_read_and_how_exact_it_is():
    rows = list(product_rows("tiny", SHAPE, torch.float32, DEVICE, {0.5: SMALL_TILES}, clock=CountingClock()))
    assert [row.projection for row in rows] == ["qkv", "o", "gate_up", "down"]
    for row in rows:
        assert row.err < 1e-5
        assert row.speedup == pytest.approx(row.dense_us / row.us)
    down = rows[-1]
    assert down.gb_s == pytest.approx(40 * 48 * 4 / down.us / 1e3)


def test_rows_of_listing():
    """What has no counterpart in torch has no speed-up."""
    rows = list(
        listing_rows("tiny", SHAPE, torch.float32, DEVICE, SMALL_TILES, contexts=(40,), clock=CountingClock())
    )
    assert {row.projection: row.us for row in rows} == {
        "rms_norm+lists": 99.0,
        "silu_mul+lists": -1.0,  # 97 with them, 98 without: this clock runs backwards
        "attention+lists": 96.0,
    }
    assert {row.speedup for row in rows} == {None}


def test_rows_of_selection():
    """Before q, k and v, which have a list each, and before down."""
    rows = list(selection_rows("tiny", SHAPE, torch.float32, DEVICE, clock=CountingClock()))
    assert [(row.shape, row.backend, row.us) for row in rows] == [
        ("tiny 48", "triton", 99.0),
        ("tiny 80", "triton", 98.0),
    ]
    assert {row.projection for row in rows} == {"top_k"}


@pytest.mark.slow
def test_rows_of_attention():
    """A context alone in a cache is timed beside torch's attention."""
    rows = list(attention_rows("tiny", SHAPE, torch.float32, DEVICE, contexts=(24, 40), clock=CountingClock()))
    assert [row.shape for row in rows] == ["tiny context 24", "tiny context 40"]
    for row in rows:
        assert row.projection == "attention"
        assert row.err < 1e-5
        assert row.speedup == pytest.approx(row.dense_us / row.us)
    assert rows[0].gb_s == pytest.approx(2 * 24 * 24 * 4 / rows[0].us / 1e3)


@pytest.mark.slow
def test_the_search_walks_to_the_fastest_tile(monkeypatch):
    monkeypatch.setattr("wisparse.kernels.gpu.tuning.products.SAMPLE", 0)
    workload = Workload(products_of(SHAPE)[1], torch.float32, DEVICE, sparsity=0.5, list_block=32)
    tiles = [Tile(16, 8), Tile(32, 8), Tile(32, 16), Tile(64, 16, warps=8)]  # the last is no single change away
    clock = CountingClock()
    assert tune(workload, tiles[0], tiles, clock) == (tiles[2], 97.0)
    assert clock.calls == 3


@pytest.mark.slow
def test_tiles_are_tuned_once_and_kept(tmp_path):
    cache, clock = TuningCache(tmp_path / "new"), CountingClock()
    first = tuned_tiles(SHAPE, torch.float32, DEVICE, sparsity=0.52, cache=cache, clock=clock)
    assert clock.calls == 8  # nothing but the default is worth timing at this size, dense and sparse
    stored = json.loads(cache.path.read_text())
    assert any("sparse 0.5" in key for key in stored)
    assert tuned_tiles(SHAPE, torch.float32, DEVICE, sparsity=0.48, cache=cache, clock=clock) == first
    assert clock.calls == 8
    assert sorted(path.name for path in cache.path.parent.iterdir()) == ["tiles.json"]


@pytest.mark.slow
def test_torch_computes_the_dense_products_of_a_batch_where_it_is_faster(tmp_path, monkeypatch):
    cache = TuningCache(tmp_path)
    monkeypatch.setattr(tuning, "candidates", lambda *_: [])

    def clock(function, copies):
        function(copies - 1)
        library = getattr(function, "__name__", "") == "start_library"
        return 5.0 if not library else 4.0 if function.__self__.product.name in ("qkv", "down") else 6.0

    arguments = (SHAPE, torch.float32, DEVICE, 3)
    found = tuned_tiles(*arguments, cache=cache, clock=clock)
    assert found.library == {"qkv", "down"}
    assert tuned_tiles(*arguments, cache=cache, clock=None).library == found.library  # nothing is timed again
    monkeypatch.undo()
    assert not default_tiles(SHAPE, 1).library


@pytest.mark.parametrize("name", ["qkv", "o", "gate_up", "down"])
def test_torchs_product_and_what_follows_it_are_those_of_a_tile(name):
    product = next(one for one in products_of(SHAPE) if one.name == name)
    workload = Workload(product, torch.float32, DEVICE, 3)
    exact = workload.x.double() @ workload.weights[0].double()
    workload.start_library()
    if name == "gate_up":
        gate, up = exact.split(product.widths, dim=1)
        found, exact = workload._buffers["x_out"], torch.nn.functional.silu(gate) * up
    else:
        found = workload._buffers["sums"] if name == "qkv" else workload._out
    assert torch.allclose(found.double(), exact, atol=1e-5)
    if name in ("o", "down"):
        squares = workload._buffers["squares"].double().sum(1)
        assert torch.allclose(squares, exact.square().sum(1), rtol=1e-5)


def test_a_broken_cache_is_an_empty_one(tmp_path, monkeypatch):
    monkeypatch.setenv("WISPARSE_CACHE", str(tmp_path))
    cache = TuningCache()
    cache.path.write_text("{")
    key = tuning_key(products_of(SHAPE)[0], torch.float16, DEVICE, 2, None, 256)
    assert cache.find(key, Tile) is None
    cache.store(key, Tile(64, 8), 3.0)
    assert cache.find(key, Tile) == Tile(64, 8)


def test_a_tile_of_another_version_was_never_tuned(tmp_path):
    """A field that is gone, and a value that is no longer allowed."""
    cache = TuningCache(tmp_path)
    for broken in ({"colums": 64}, {"columns": 65}):
        cache.path.write_text(json.dumps({"key": {"tile": broken, "us": 1.0}}))
        assert cache.find("key", Tile) is None
    assert cache.tuned("key", Tile, lambda: (Tile(32), 2.0)) == Tile(32) == cache.find("key", Tile)


def test_tiles_that_are_kept_at_once_are_all_kept(tmp_path):
    caches = [TuningCache(tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: caches[number % 4].store(str(number), Tile(64, 8), 1.0), range(20)))
    assert all(caches[0].find(str(number), Tile) for number in range(20))
    assert [path.name for path in tmp_path.iterdir()] == ["tiles.json"]


def test_a_file_system_without_locks_keeps_tiles_all_the_same(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("wisparse.kernels.shared_files.fcntl.flock", no_locks)
    cache = TuningCache(tmp_path)
    cache.store("key", Tile(64, 8), 1.0)
    assert cache.find("key", Tile) == Tile(64, 8)
    with pytest.raises(UserError, match="lies on a file system without locks"), held(tmp_path / "cell"):
        pass


@pytest.mark.parametrize("batch", [1, 4])
def test_candidates_fill_a_gpu(batch):
    for product in products_of(LLAMA_8B):
        for block in (None, 256):
            tiles = candidates(product, batch, block)
            assert len(tiles) >= 20
            assert len(set(tiles)) == len(tiles)
    assert bucket_of(0.47) == 0.5
    # Behind a short context every query head of a single row has a list block of its own.
    assert default_tiles(LLAMA_8B, batch, 256).list_blocks(LLAMA_8B)["o"] == (128 if batch == 1 else 512)
    assert default_tiles(LLAMA_8B, batch, 4096).list_blocks(LLAMA_8B)["o"] == 512


@pytest.mark.skipif(DEVICE.type == "cuda", reason="for machines without a GPU")
def test_timing_without_a_gpu_ends_in_one_line():
    with pytest.raises(KernelError, match="there is none"):
        graph_clock(lambda _: None, 1)
