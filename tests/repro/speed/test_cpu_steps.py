"""The clock of decode steps on a CPU: it decodes, files have the shapes, and rows are renewed."""

import sys

import gguf
import pytest
from wisparse.kernels.model.decoder import DecoderShape
from wisparse.repro.report.summaries.steps import cpu_table
from wisparse.repro.speed import cpu_steps
from wisparse.repro.speed.cpu_steps import COLUMNS, SAME, TOKENS, OwnDecoder, in_turn
from wisparse.repro.speed.random_gguf import write_random_gguf
from wisparse.repro.tables.csv_rows import csv_text, place_by, renewed

SHAPE = DecoderShape(2, 128, 256, 2, 1, 64, 96, 1e-5, (None, None))


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_step_is_timed_behind_the_same_context_and_reads_what_it_says(bits):
    sizes = {}
    for sparsity in (0.0, 0.5):
        own = OwnDecoder(SHAPE, "bfloat16", bits, sparsity, context=4)
        assert len(own.clock(3)) == 3
        assert own._cache.length.item() == 5
        sizes[sparsity] = own.bytes
    head = 128 * 96 * min(2, max(bits, 8) / 8)
    blocks = 2 * (128 * (128 + 2 * 64 + 128 + 3 * 256)) * bits / 8
    assert sizes[0.0] == pytest.approx(blocks + head, rel=0.12)  # and scales
    assert sizes[0.0] - sizes[0.5] == pytest.approx(blocks / 2, rel=0.12)


def test_clocks_take_turns_and_the_first_tokens_are_not_counted():
    asked = []

    def clock(name):
        return lambda tokens: asked.append(name) or [9.0, 9.0, *[float(name)] * (tokens - 2)]

    found = in_turn({1: clock(1), 2: clock(2)}, rounds=2)
    assert asked == [1, 2, 1, 2]
    assert found == {name: [float(name)] * 2 * (TOKENS - 2) for name in (1, 2)}


@pytest.mark.parametrize("bits", [8, 4])
def test_a_file_for_llama_cpp_holds_the_shapes_in_its_blocks(tmp_path, bits):
    write_random_gguf(tmp_path / "model.gguf", SHAPE, bits, head_bits=8)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert len(tensors) == 2 * 9 + 2
    assert tensors["blk.1.ffn_down.weight"].shape.tolist() == [256, 128]
    assert tensors["blk.0.attn_k.weight"].tensor_type.name == f"Q{bits}_0"
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"
    values = gguf.quants.dequantize(
        tensors["blk.0.attn_q.weight"].data, tensors["blk.0.attn_q.weight"].tensor_type
    )
    assert 0.2 < values.std() * 128**0.5 < 5


def row(decoder, dtype, sparsity, ms, bits=4):
    given = {"device": "CPU", "threads": "2", "instructions": "native", "shape": "small", "context": "100"}
    return dict.fromkeys(COLUMNS, "") | given | {
        "decoder": decoder, "dtype": dtype, "sparsity": str(sparsity), "ms": str(ms), "bits": str(bits),
        "gb_s": "10", "read_gb_s": "40",
    }  # fmt: skip


def test_a_row_that_is_measured_again_is_replaced():
    old, other = row("engine", "float32", 0.0, 5), row("engine", "float32", 0.5, 4)
    new = row("engine", "float32", 0.0, 3)
    assert renewed([old, other], [new], place_by(SAME)) == [other, new]


def test_the_table_compares_with_llama_cpp_of_the_same_setting(tmp_path):
    rows = [row("engine", "bfloat16", 0.0, 4), row("engine", "bfloat16", 0.5, 2)]
    rows += [row("llama.cpp Q4_0", "", 0.0, 5), row("engine", "bfloat16", 0.0, 8, bits=16)]
    path = tmp_path / "cpu_steps.csv"
    path.write_text(csv_text(COLUMNS, rows))
    assert cpu_table(path).splitlines()[2:] == [
        "| small | native | int4, `Q4_0` | bfloat16 | 5.00 | 4.00 | 2.00 | 1.25× | 2.50× | 25% |",
        "| small | native | bfloat16 | bfloat16 | not measured | 8.00 | not measured |  |  | 25% |",
    ]


def test_all_rows_of_a_run_name_the_commit_that_it_began_at(monkeypatch, tmp_path):
    """Its first rows may change a table of the checkout, which the next ones would have called a change."""
    named, states = [], iter(("abc1234", "abc1234+", "abc1234+"))
    monkeypatch.setattr(cpu_steps, "this_commit", lambda: next(states))
    monkeypatch.setattr(cpu_steps, "measured_rows", lambda options, bits: named.append(options.commit) or [])
    monkeypatch.setattr(sys, "argv", ["cpu_steps", "--output", str(tmp_path / "cpu_steps.csv")])
    cpu_steps.main()
    assert named == ["abc1234"] * 3
