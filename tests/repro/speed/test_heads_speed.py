"""The benchmark's lines of attention over chosen groups as a table."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict

import pytest
from wisparse.kernels.bench.gpu_heads import HeadSpeed
from wisparse.method.errors import UserError
from wisparse.repro.speed.heads_speed import SPEED_OF_HEADS


def line(part: str, kept: int, us: float, batch: int = 8, context: int = 8192, **mask: str | float) -> str:
    place = ("NVIDIA H200", "llama3.1-8b", part, batch, context, 8, kept)
    return json.dumps(asdict(HeadSpeed(*place, us, 3000.0, 4000.0, "4 warps", **mask)))


def test_rows_stand_beside_those_of_all_groups(tmp_path):
    lines = [line("step", 4, 8000.0), line("attention", 4, 50.0), line("attention", 8, 80.0)]
    lines += [line("step", 8, 10000.0), line("attention", 4, 40.0), line("attention", 4, 30.0, context=4096)]
    (tmp_path / "heads.jsonl").write_text("\n".join(lines))
    found = SPEED_OF_HEADS.read([tmp_path / "heads.jsonl"])
    rows = list(csv.DictReader(io.StringIO(SPEED_OF_HEADS.csv(found))))
    assert [(row["part"], row["context"], row["kept"], row["speedup"]) for row in rows] == [
        ("attention", "4096", "4", ""), ("attention", "8192", "8", ""), ("attention", "8192", "4", "2.0000"),
        ("step", "8192", "8", ""), ("step", "8192", "4", "1.2500"),
    ]  # fmt: skip
    assert (rows[-1]["tok_s"], rows[-1]["share_of_bandwidth"], rows[0]["tok_s"]) == ("1000.00", "0.7500", "")
    page = SPEED_OF_HEADS.markdown(found)
    assert "whole step | 8 | 8192 | 4 |  | 0 % | 8,000.0 | 1,000 | 3,000 | 75 % | 1.25× | 1.25× |" in page


def test_steps_under_a_mask_stand_beside_all_groups_under_it_and_the_dense_step(tmp_path):
    lines = [
        line("step", 4, 5000.0, masked="ffn", sparsity=0.5),
        line("step", 8, 6000.0, masked="all", sparsity=0.5),
    ]
    lines += [
        line("step", 8, 8000.0, masked="ffn", sparsity=0.5),
        line("step", 8, 10000.0),
        line("step", 4, 9000.0),
    ]
    (tmp_path / "heads.jsonl").write_text("\n".join(lines))
    found = SPEED_OF_HEADS.read([tmp_path / "heads.jsonl"])
    rows = list(csv.DictReader(io.StringIO(SPEED_OF_HEADS.csv(found))))
    assert [(row["masked"], row["kept"], row["speedup"], row["over_dense"]) for row in rows] == [
        ("none", "8", "", ""), ("none", "4", "1.1111", "1.1111"), ("ffn", "8", "", "1.2500"),
        ("ffn", "4", "1.6000", "2.0000"), ("all", "8", "", "1.6667"),
    ]  # fmt: skip
    page = SPEED_OF_HEADS.markdown(found)
    assert "| 8 | 8192 | 4 | FFN | 50 % | 5,000.0 | 1,600 | 3,000 | 75 % | 1.60× | 2.00× |" in page
    table = tmp_path / "heads.csv"
    table.write_text(SPEED_OF_HEADS.csv(found))
    assert SPEED_OF_HEADS.csv(SPEED_OF_HEADS.read([table])) == table.read_text()


def test_another_file_is_one_line(tmp_path):
    for text in ("", '{"device": "x"}', "no JSON"):
        (tmp_path / "heads.jsonl").write_text(text)
        with pytest.raises(UserError, match=r"wisparse\.kernels\.bench\.gpu_heads"):
            SPEED_OF_HEADS.read([tmp_path / "heads.jsonl"])


def test_a_table_keeps_its_rows_but_those_measured_again(tmp_path):
    lines, again = [line("step", 8, 10000.0), line("step", 4, 8000.0)], tmp_path / "again.jsonl"
    other = line("step", 8, 12345.678901).replace("NVIDIA H200", "CPU").replace("3000.0", "20.446")
    (tmp_path / "heads.jsonl").write_text("\n".join([*lines, other.replace("4000.0", "24.4997")]))
    table, measured = tmp_path / "heads.csv", SPEED_OF_HEADS.read([tmp_path / "heads.jsonl"])
    table.write_text(SPEED_OF_HEADS.csv(measured))
    assert SPEED_OF_HEADS.csv(SPEED_OF_HEADS.read([table])) == table.read_text()
    assert SPEED_OF_HEADS.markdown(SPEED_OF_HEADS.read([table])) == SPEED_OF_HEADS.markdown(measured)
    again.write_text(line("step", 4, 5000.0).replace("4000.0", "4100.0"))
    found = SPEED_OF_HEADS.read([table, again])
    assert [(row.kept, row.us) for row in found] == [(8, 12345.68), (8, 10000.0), (4, 5000.0)]
    assert (
        "| 8 | 8192 | 4 |  | 0 % | 5,000.0 | 1,600 | 3,000 | 73 % | 2.00× | 2.00× |"
        in SPEED_OF_HEADS.markdown(found)
    )
    assert "Measured bandwidth: 4,000.0 to 4,100.0 GB/s." in SPEED_OF_HEADS.markdown(found)
    table.write_text("device,shape\nx,y\n")
    with pytest.raises(UserError, match=r"heads\.csv has no column .part."):
        SPEED_OF_HEADS.read([table])
