"""Massive entries of a small model that has some, and passes in which chosen entries are sparse or kept."""

from dataclasses import replace
from itertools import groupby

import pytest
import torch
from wisparse.kernels.model.decoder import PROJECTIONS
from wisparse.repro.studies.massive_bench import FIRST, Bench
from wisparse.repro.studies.massive_entries import AlwaysKept, DroppedAlone, SparseAt, massive_entries
from wisparse.repro.studies.massive_needs import COLUMNS, Tables
from wisparse.repro.studies.shifted_pass import Deviation, StudiedText
from wisparse.repro.tables.csv_rows import read_rows

from ...conftest import make_calibration, make_method

BLOCK, CHANNEL = 1, 5


class Letters:
    """A tokenizer whose even tokens are letters."""

    def decode(self, ids):
        return "".join("a" if number % 2 == 0 else "," for number in ids)


@pytest.fixture
def text(llama):
    """A model in which one neuron's product is massive at every token."""
    with torch.no_grad():
        llama.model.layers[BLOCK].mlp.up_proj.weight[CHANNEL] *= 1e4
        llama.model.layers[BLOCK].mlp.down_proj.weight[:, CHANNEL] *= 1e-2
    calibration = make_calibration(llama)
    return StudiedText(llama, make_method("teal_uniform").plan(calibration, 0.5), calibration.input_ids, 4)


def lost(text, choice):
    return text.lost(text.dense_states(), Deviation(choice=choice))


def at(text, count):
    return (torch.arange(text.ids.shape[1]) < count).expand(text.ids.shape)


def test_massive_entries_are_found_where_they_are(text):
    found = [one for one in massive_entries(text.model, text.ids, 4) if one.site == "mlp_hidden"]
    assert [(one.block, one.channel, one.projections) for one in found] == [(BLOCK, CHANNEL, ["1.down"])]
    (one,) = found
    assert one.tokens.shape == text.ids.shape
    assert one.tokens.float().mean() > 0.5
    assert (one.size[one.tokens] >= 500 * one.median).all()


def test_surprisal_is_the_models_own_loss(text):
    found = lost(text, SparseAt({}))
    with torch.inference_mode():
        loss = text.model(text.ids, labels=text.ids).loss
    assert float(found.surprisal.mean()) == pytest.approx(float(loss), rel=1e-4)


def test_what_is_sparse_nowhere_is_dense_and_everywhere_is_the_plan(text):
    nowhere, plan = lost(text, SparseAt({})), lost(text, None)
    assert float(nowhere.divergence.abs().max()) < 1e-5
    assert torch.allclose(nowhere.read, torch.ones(()))
    everywhere = lost(text, SparseAt(dict.fromkeys(text.plan.shapes, at(text, text.ids.shape[1]))))
    assert torch.equal(everywhere.divergence, plan.divergence)
    assert torch.equal(everywhere.read, plan.read)


def test_one_token_is_sparse_in_the_projections_that_are_named(text):
    found = lost(text, SparseAt({"0.down": at(text, 1)}))
    assert (found.read[0, :, 0] < 1).all()
    assert torch.allclose(found.read[0, :, 1:], torch.ones(()))
    assert torch.allclose(found.read[1], torch.ones(()))


def test_dropped_alone_is_the_dense_model_without_these_entries(text):
    tokens = at(text, 2)
    found = lost(text, DroppedAlone({"1.down": [(CHANNEL, tokens)]}))

    def without(_, inputs):
        x = inputs[0].clone()
        x[..., CHANNEL] *= ~tokens
        return (x,)

    handle = text.model.model.layers[BLOCK].mlp.down_proj.register_forward_pre_hook(without)
    by_hand = replace(text, batch_size=len(text.ids)).dense_states()
    handle.remove()
    expected, got = (text.model.lm_head(states).log_softmax(-1) for states in (text.dense_states(), by_hand))
    assert torch.allclose(found.divergence, (expected.exp() * (expected - got)).sum(-1), atol=1e-4)
    assert float(found.divergence.mean()) > 0


def test_channels_that_are_always_kept_are_read_besides(text):
    plan, kept = lost(text, None), lost(text, AlwaysKept({"0.q": torch.arange(8)}))
    assert (kept.read[0, :, 0] >= plan.read[0, :, 0]).all()  # of other tokens q decides what o reads
    assert kept.read[0].mean() > plan.read[0].mean()


def test_rows_say_what_keeping_costs_and_blocks_are_ranked_by_what_they_cost(text):
    bench = Bench(text, Letters(), seed=0)
    rows = list(bench.needs())
    by_part = {part: list(found) for part, found in groupby(rows, key=lambda row: row["part"])}
    assert by_part["plan"][0]["extra_bytes"] == "0"
    weights = sum(out * inner for out, inner in text.plan.shapes.values())
    first = by_part["dense tokens"][0]
    more = (float(first["read"]) - float(by_part["plan"][0]["read"])) * weights * 4
    assert float(first["extra_bytes"]) == pytest.approx(more, abs=weights * 4e-5)
    assert len(by_part["dense tokens"]) == len(FIRST) + 2  # no token's stream has a massive entry
    alone = {row["setting"]: float(row["divergence"]) for row in by_part["first token alone sparse"]}
    costs = [alone[f"in block {block}"] for block in (0, 1)]
    dearest = costs.index(max(costs))
    assert {f"in {kind} of block {dearest}" for kind in PROJECTIONS} <= alone.keys()
    assert f"the first token in blocks {dearest}" in [row["setting"] for row in by_part["kept besides"]]


def test_entries_and_their_removal_have_a_row_each(text):
    bench = Bench(text, Letters(), seed=0)
    found = [row for row in bench.entries() if row["site"] == "mlp_hidden"]
    assert [(row["block"], row["channel"]) for row in found] == [(f"{BLOCK}", f"{CHANNEL}")]
    assert found[0]["commonest"] in ("'a'", "','")
    settings = {row["setting"]: row for row in bench.dropped()}
    assert float(settings["inputs of down in block 1, first token"]["divergence"]) > 0
    assert all(row["extra_bytes"] == "" for row in settings.values())


def test_rows_of_other_methods_stay_and_own_ones_are_measured_anew(tmp_path):
    path = tmp_path / "needs.csv"

    def run(method, *settings):
        tables = Tables(tmp_path / "needs", {"model": "m", "seed": "0", "sparsity": "0.5"})
        for setting in settings:
            tables.add("needs", dict.fromkeys(COLUMNS["needs"], "") | {"method": method, "setting": setting})

    run("teal", "old", "older")
    run("equal_loss", "other")
    run("teal", "new")
    assert [(row["method"], row["setting"]) for row in read_rows(path)] == [
        ("equal_loss", "other"),
        ("teal", "new"),
    ]
    assert not (tmp_path / "needs_entries.csv").exists()
