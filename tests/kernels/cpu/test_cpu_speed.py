import pytest
import torch
from wisparse.kernels.bench import cpu_speed
from wisparse.kernels.bench.cpu_speed import measure
from wisparse.kernels.cpu.gemv import backend

KEYS = {"device", "backend", "threads", "projection", "shape", "dtype"}
KEYS |= {"sparsity", "us", "dense_us", "speedup", "gb_s", "err"}


def test_records_of_every_projection_dtype_and_sparsity(monkeypatch):
    monkeypatch.setattr(cpu_speed, "COLD_BYTES", 1e6)
    shapes = {"up": (200, 600), "down": (600, 200)}
    records = measure(shapes, [torch.float32, torch.bfloat16], [0.0, 0.5], repeats=3)
    asked = [(p, d, s) for p in shapes for d in ("float32", "bfloat16") for s in (0.0, 0.5)]
    assert [(r["projection"], r["dtype"], round(r["sparsity"], 1)) for r in records] == asked
    for record in records:
        assert set(record) == KEYS
        assert record["shape"] == shapes[record["projection"]]
        assert record["backend"] == backend()
        assert record["threads"] == torch.get_num_threads()
        assert record["speedup"] == pytest.approx(record["dense_us"] / record["us"])
        size = 4 if record["dtype"] == "float32" else 2
        read = (1 - record["sparsity"]) * 200 * 600 * size
        assert record["gb_s"] == pytest.approx(read / record["us"] / 1000)
        assert 0 <= record["err"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("sparsities", "repeats", "message"), [([1.0], 1, "sparsity"), ([0.5], 0, "repeats")])
def test_bad_requests_are_named(sparsities, repeats, message):
    with pytest.raises(ValueError, match=message):
        measure({"up": (20, 30)}, [torch.float32], sparsities, repeats)
