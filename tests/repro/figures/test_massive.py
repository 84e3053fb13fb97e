"""Massive activations: measured by hand on a tiny model, and drawn from their rows."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from wisparse.method.calibration import Calibration
from wisparse.method.running.apply import applied
from wisparse.repro.evaluation.massive_suite import MassiveSuite
from wisparse.repro.figures.massive_plot import read_massive, write_massive

from ...conftest import make_method, make_protocol
from ..tables.made_up_cells import write_cell


class Sequences:
    """Text of given tokens."""

    batch_size = 1

    def input_ids(self, tokenizer: object) -> torch.Tensor:
        return torch.randint(5, 60, (2, 12), generator=torch.Generator().manual_seed(3))


def details(model, protocol: str) -> dict[str, list[list[float]]]:
    plan = make_method("wisparse_activation_only").plan(Calibration(model, Sequences().input_ids(None)), 0.5)
    with applied(model, plan, make_protocol(protocol)) as session:
        return MassiveSuite("massive", Sequences()).run(model, None, session).details


def test_the_first_token_beside_all_others_by_hand(llama):
    found = details(llama, "all")
    before = llama.config._attn_implementation
    llama.set_attn_implementation("eager")
    with torch.inference_mode():
        passes = [
            llama.model(input_ids=ids[None], output_attentions=True) for ids in Sequences().input_ids(None)
        ]
    streams = []
    handle = llama.model.layers[0].register_forward_hook(lambda _, __, out: streams.append(out))
    with torch.inference_mode():
        llama(input_ids=Sequences().input_ids(None))
    handle.remove()
    llama.set_attn_implementation(before)
    stream = (streams[0][0] if isinstance(streams[0], tuple) else streams[0]).abs().amax(-1)
    largest = [float(stream[:, 0].max()), float(stream[:, 1:].max())]
    assert found["largest"][0] == pytest.approx(largest, rel=1e-4)
    weights = torch.stack([one.attentions[1][0] for one in passes])
    assert found["attention_on_first"][1][1] == pytest.approx(float(weights[:, :, 1:, 0].mean()), rel=1e-4)


def test_what_is_sparse_is_dropped_and_changed(llama):
    everywhere, half = details(llama, "all"), details(llama, "half")
    for block in range(2):
        assert all(0.2 < share < 0.8 for share in everywhere["dropped"][block])
        assert all(error > 0 for error in everywhere["error"][block])
        assert (half["dropped"][block][0], half["error"][block][0]) == (0, 0)  # the first half is dense
        assert half["dropped"][block][1] > 0


@pytest.mark.slow
def test_the_figure_is_drawn_from_its_table(tmp_path: Path):
    for method in ("teal", "wina"):
        measures = {"largest": 900.0, "attention_on_first": 0.0, "dropped": 0.9, "error": 0.5}
        made_up = {name: [[value, 0.25], [value, 0.125]] for name, value in measures.items()}
        write_cell(tmp_path, method, 0.5, 0, made_up, suite={"name": "massive", "config": {}})
    data = read_massive([tmp_path])
    written = write_massive(data, tmp_path / "massive")
    assert [path.suffix for path in written] == [".png", ".svg"]
    rows = list(csv.DictReader((tmp_path / "massive.csv").open()))
    assert [(row["method"], row["block"], row["error_others"]) for row in rows] == [
        ("teal", "0", "0.25"), ("teal", "1", "0.125"), ("wina", "0", "0.25"), ("wina", "1", "0.125")
    ]  # fmt: skip
    assert ">teal<" in (tmp_path / "massive.svg").read_text()
