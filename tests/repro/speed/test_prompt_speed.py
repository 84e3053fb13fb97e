"""Prompts that are timed on dequantised linears and on stored rows: a row of each format and length."""

from __future__ import annotations

import json

import pytest
from wisparse.repro.speed import prompt_speed
from wisparse.repro.tables.csv_rows import read_rows

from ...conftest import make_tiny_model


@pytest.mark.slow
def test_a_row_of_each_format_and_length(monkeypatch, capsys, tmp_path):
    config = make_tiny_model("llama", heads=(2, 2), sizes=(128, 128)).config
    keys = (
        "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps",
    )  # fmt: skip
    monkeypatch.setattr(prompt_speed, "architecture_of", lambda _: {key: getattr(config, key) for key in keys})
    table = tmp_path / "prompts.csv"
    arguments = ["--device", "cpu", "--dtype", "float32", "--prompts", "9", "3", "--csv", str(table)]
    monkeypatch.setattr("sys.argv", ["prompt_speed", *arguments])
    prompt_speed.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["bits"], row["prompt"]) for row in rows] == [(8, 3), (8, 9), (4, 3), (4, 9)]
    assert all(float(row[name]) > 0 for row in rows for name in ("ms_dequantised", "ms_stored"))
    assert rows[0]["stored_bytes"] > rows[2]["stored_bytes"] > 0
    assert [row["prompt"] for row in read_rows(table)] == ["3", "9", "3", "9"]
