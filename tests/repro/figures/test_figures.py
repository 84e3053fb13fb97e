"""WiSparse's figures: what is measured for them, their rows by hand, and how they are drawn."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from wisparse.method.calibration import Calibration
from wisparse.method.errors import UserError
from wisparse.method.projections import PROJECTIONS, key
from wisparse.method.running.apply import applied
from wisparse.repro.evaluation.channel_suite import ChannelSuite
from wisparse.repro.evaluation.no_suite import NoSuite
from wisparse.repro.evaluation.one_block import OneBlockSuite
from wisparse.repro.evaluation.suites import PerplexitySuite
from wisparse.repro.figures.make import FIGURES, main, write_figures
from wisparse.repro.figures.plots import mismatch
from wisparse.repro.figures.rows import cost_rows, read_figures
from wisparse.repro.models.architecture import projection_sizes
from wisparse.repro.tables.csv_rows import read_rows
from wisparse.repro.tables.plot_style import INK, PALETTE

from ...conftest import ROOT, make_method, make_protocol
from ..tables.made_up_cells import write_cell

RESULTS = ROOT / "results"
TEXT = PerplexitySuite(str(Path(__file__)), length=64, windows=2)


def ids(sequences: int = 2, length: int = 48) -> torch.Tensor:
    return torch.randint(5, 8192, (sequences, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.slow
def test_one_block_alone_costs_what_its_own_rules_cost(model, tokenizer):
    plan = make_method("wisparse_activation_only").plan(Calibration(model, ids()), 0.5)
    with applied(model, plan, make_protocol("all")) as session:
        evaluation = OneBlockSuite("one_block", TEXT).run(model, tokenizer, session)
        with session.only_blocks(3):
            third = TEXT.run(model, tokenizer, session).documents
    details = evaluation.details
    assert evaluation.perplexity is None
    assert details["dense"] == [document.nats for document in TEXT.run(model, tokenizer, None).documents]
    assert details["blocks"][3]["nats"] == [document.nats for document in third]
    assert len(details["blocks"]) == 8
    assert all(0.35 < block["realised_sparsity"] < 0.65 for block in details["blocks"])


@pytest.mark.slow
def test_a_text_without_documents_is_refused(model, tokenizer):
    plan = make_method("dense").plan(Calibration(model, ids()), 0.0)
    suite = OneBlockSuite("one_block", NoSuite())
    with applied(model, plan, make_protocol("all")) as session, pytest.raises(UserError, match="no documents"):
        suite.run(model, tokenizer, session)


class Sequences:
    """Calibration text of given tokens."""

    batch_size = 1

    def input_ids(self, tokenizer: object) -> torch.Tensor:
        return ids()


def test_channels_by_hand(model, tokenizer):
    details = ChannelSuite("channels", Sequences(), 2, ["down"]).run(model, tokenizer, None).details
    down, seen = model.model.layers[2].mlp.down_proj, []
    handle = down.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model(input_ids=ids())
    handle.remove()
    channels = details["projections"]["down"]
    assert details["block"] == 2
    assert np.allclose(channels["magnitudes"], seen[0].abs().mean(dim=(0, 1)), rtol=1e-4)
    assert np.allclose(channels["column_norms"], down.weight.detach().pow(2).sum(dim=0).sqrt(), rtol=1e-4)


def test_the_middle_block_and_those_there_are_not(model, tokenizer):
    suite = ChannelSuite("channels", Sequences(), None, ["q"])
    assert suite.run(model, tokenizer, None).details["block"] == 4
    with pytest.raises(UserError, match="blocks 0 to 7"):
        ChannelSuite("channels", Sequences(), 8, ["q"]).run(model, tokenizer, None)
    with pytest.raises(UserError, match="no projection z; there are q, k"):
        ChannelSuite("channels", Sequences(), 0, ["z"])


def named(suite: str) -> dict[str, object]:
    return {"name": suite, "config": {"name": suite}}


def write_records(root: Path) -> Path:
    """A record for every figure, of llama-mini, with numbers that are easily checked."""
    channels = {"gate": {"magnitudes": [4.0, 1.0, 3.0, 2.0], "column_norms": [1.0, 4.0, 3.0, 2.0]}}
    write_cell(root, "dense", 0.0, 0, {"block": 4, "projections": channels}, suite=named("channels"))
    blocks = [{"realised_sparsity": 0.5, "nats": [100.0 + step, 200.0 + step]} for step in (30, 0, 15)]
    details = {"tokens": [50, 100], "dense": [100.0, 200.0], "blocks": blocks}
    write_cell(root, "wisparse_activation_only", 0.5, 0, details, suite=named("one_block"))
    sparsities = {key(block, name): 0.5 for block in range(2) for name in PROJECTIONS}
    sparsities |= {"0.q": 0.9, "1.k": 0.0}
    provenance = {
        "block_sparsities": [0.6, 0.4],
        "sparsities": sparsities,
        "alphas": dict.fromkeys(sparsities, 0.75),
    }
    write_cell(root, "wisparse", 0.5, 0, suite=named("no"), plan={"provenance": provenance})
    return root


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return write_records(tmp_path / "records")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """The figures of these records."""
    folder = tmp_path_factory.mktemp("drawn")
    assert write_figures(read_figures([write_records(folder / "records")]), folder / "figures") == list(FIGURES)
    return folder / "figures"


def rows_of(name: str, records: Path) -> list[dict[str, str]]:
    return [
        {column: str(value) for column, value in row.items()}
        for row in FIGURES[name].rows(read_figures([records]))
    ]


def test_ranks_and_mismatch_by_hand(records):
    rows = rows_of("figure2", records)
    assert [row["magnitude_rank"] for row in rows] == ["1", "4", "2", "3"]
    assert [row["norm_rank"] for row in rows] == ["4", "1", "2", "3"]
    correlation, share = mismatch(rows)
    assert correlation == pytest.approx(-0.8)  # 1 − 6·(9 + 9)/(4·15)
    assert share == 0.5  # of channels 1 and 3, channel 1 has one of the two largest norms


def test_perplexity_with_one_block_sparse_by_hand(records):
    rows = rows_of("figure3", records)
    assert [float(row["perplexity"]) for row in rows] == pytest.approx(
        [math.exp(360 / 150), math.exp(2), math.exp(330 / 150)], abs=1e-4
    )
    assert float(rows[0]["perplexity_ratio"]) == pytest.approx(math.exp(60 / 150), abs=1e-5)
    # The first document, with 30 nats on 50 tokens, suffers most; a resample of it alone is the upper bound.
    assert float(rows[0]["perplexity_ratio_high"]) == pytest.approx(math.exp(30 / 50), abs=1e-5)
    assert rows[1]["perplexity_ratio_low"] == rows[1]["perplexity_ratio_high"] == "1.00000"


def test_attention_and_mlp_are_weighted_by_size(records):
    first, second = rows_of("figure5", records)
    sizes = projection_sizes("llama-mini")
    attention = sum(sizes[name] for name in ("q", "k", "v", "o"))
    assert float(first["attention"]) == pytest.approx(0.5 + 0.4 * sizes["q"] / attention, abs=1e-5)
    assert float(second["attention"]) == pytest.approx(0.5 - 0.5 * sizes["k"] / attention, abs=1e-5)
    assert (first["mlp"], first["block_sparsity"], second["block_sparsity"]) == (
        "0.50000",
        "0.60000",
        "0.40000",
    )


def test_sizes_are_those_of_the_model(model):
    layer = model.model.layers[0]
    weights = {name: getattr(layer.self_attn, f"{name}_proj").weight for name in ("q", "k", "v", "o")}
    weights |= {name: getattr(layer.mlp, f"{name}_proj").weight for name in ("gate", "up", "down")}
    assert projection_sizes("llama-mini") == {name: weight.numel() for name, weight in weights.items()}


def test_a_dense_projection_has_no_alpha(records):
    first, second = rows_of("figure6", records)
    assert {first[name] for name in PROJECTIONS} == {"0.75"}
    assert [second[name] for name in PROJECTIONS] == ["0.75", "", "0.75", "0.75", "0.75", "0.75", "0.75"]


@pytest.mark.slow
def test_costs_are_the_papers_and_throughput_is_speed_csvs(tmp_path):
    rows = list(cost_rows(RESULTS / "speed.csv"))
    large = {row["sparsity"]: row["tflops_128_tokens"] for row in rows if row["model"] == "llama3.1-8b"}
    assert [f"{float(large[sparsity]):.2f}" for sparsity in (0.0, 0.5)] == ["1.92", "1.03"]
    timed = {
        (row["model"], float(row["sparsity"]), row["device"], row["tok_s"])
        for row in read_rows(RESULTS / "speed.csv")
        if row["method"] == "wisparse" and row["batch"] == "1" and row["prompt"] == "5"
    }
    found = {(row["model"], row["sparsity"], row["device"], row["tok_s"]) for row in rows if "tok_s" in row}
    assert timed <= found
    places = [(row["model"], row["sparsity"], row["device"], row["method"]) for row in rows if "tok_s" in row]
    assert len(places) == len(set(places)), "a line has one point at a sparsity, of one dtype"
    absent = list(cost_rows(tmp_path / "absent.csv"))
    assert {row["status"] for row in absent} == {"not measured"}


def png_pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)


@pytest.mark.slow
def test_figures_have_no_background_and_no_black_ink(drawn):
    for name in FIGURES:
        pixels = png_pixels(drawn / f"{name}.png")
        assert pixels[0, 0, 3] == 0.0, "the corner is transparent"
        assert len(np.unique(pixels.reshape(-1, 4), axis=0)) <= PALETTE
        svg = (drawn / f"{name}.svg").read_text(encoding="utf-8")
        assert INK in svg
        for text in re.findall(r"<text[^>]*>", svg):
            assert f"fill: {INK}" in text or name == "figure6", text  # numbers on coloured cells


@pytest.mark.slow
def test_what_has_no_records_is_said_to_be_not_measured(records, tmp_path):
    shutil.rmtree(next(records.glob("*activation_only*")))
    written = write_figures(read_figures([records]), tmp_path / "figures")
    assert written == ["figure2", "figure4", "figure5", "figure6"]
    assert not (tmp_path / "figures" / "figure3.csv").exists()
    text = (tmp_path / "figures.md").read_text(encoding="utf-8")
    assert "## Figure 3: perplexity with one block alone sparse\n\nNot measured.\n" in text
    assert "not 7-8B results" in text


def test_records_that_do_not_belong_together_are_refused(records):
    write_cell(records, "wisparse", 0.6, 0, suite=named("no"), seed=1)
    with pytest.raises(UserError, match="different seed"):
        rows_of("figure5", records)


def test_the_command_refuses_an_empty_folder(tmp_path, monkeypatch, capsys):
    output = tmp_path / "out" / "figures"
    arguments = ["figures", "--output", str(output), "--records", str(tmp_path / "empty")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert re.fullmatch(
        r"error: .* holds no records of this table; run `make reproduce-figures` first\n",
        capsys.readouterr().err,
    )
    assert not output.parent.exists()


@pytest.mark.slow
def test_the_same_records_give_the_same_files_and_are_kept(records, drawn, tmp_path, monkeypatch):
    output, kept = tmp_path / "figures", tmp_path / "kept"
    arguments = ["figures", "--output", str(output), "--keep-records", str(kept), "--records", str(records)]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    files = [drawn.with_suffix(".md"), *sorted(drawn.iterdir())]
    assert len(files) == 1 + 3 * len(FIGURES)
    for path in files:
        assert path.read_bytes() == (tmp_path / path.relative_to(drawn.parent)).read_bytes(), path.name
    assert {name: rows_of(name, kept) for name in FIGURES} == {name: rows_of(name, records) for name in FIGURES}


@pytest.fixture(scope="module")
def made_again(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("results") / "figures"
    write_figures(read_figures([RESULTS / "records" / "figures"]), output)
    return output


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_the_committed_csvs_are_what_their_records_give(name, made_again):
    found = (made_again / f"{name}.csv").read_text(encoding="utf-8")
    command = "python -m wisparse.repro.figures --records results/records/figures --output results/figures"
    assert (RESULTS / "figures" / f"{name}.csv").read_text(encoding="utf-8") == found, f"run `{command}`"


@pytest.mark.slow
def test_reproduce_all_goes_on_after_a_failed_part_and_says_so(tmp_path):
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$*" >> {log}\ncase "$*" in *experiment=table2*) exit 2;; esac\n')
    python.chmod(0o755)
    command = ["make", "-C", str(ROOT), "-o", ".venv/.installed", f"RUN={python}", "reproduce-all"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode != 0
    assert "error: failed: reproduce-table2\n" in finished.stderr
    ran = log.read_text(encoding="utf-8")
    order = ["experiment=table1", "experiment=table2", "experiment=figure2", "reproduce_speed", "repro.claims"]
    places = [ran.index(part) for part in [*order, "repro.report"]]
    assert places == sorted(places)
    unknown = subprocess.run([*command, "PROFILE=fast"], capture_output=True, text=True, check=False)
    assert unknown.returncode != 0
    assert "error: there is no PROFILE 'fast'; choose quick, full, real or paper" in unknown.stderr
