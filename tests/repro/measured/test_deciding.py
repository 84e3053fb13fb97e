"""Records of one name that differ in what decides their numbers are refused, in one line that names it."""

from __future__ import annotations

import pytest
from wisparse.method.errors import UserError
from wisparse.repro.measured.frontier import read_frontier
from wisparse.repro.measured.real_cells import read_real
from wisparse.repro.records import write_json
from wisparse.repro.tables.speed.speed_data import read_speed
from wisparse.repro.tables.table_data import read_table

from ..tables.made_up_cells import CONFIG, write_cell

MODEL = {"name": "llama-mini", "device": "cpu", "device_name": "CPU", "threads": 2, "dtype": "float32"}
MODEL |= {"fingerprint": "f" * 64}
INT8 = {"name": "int8", "config": {"name": "int8", "lm_head": "none"}, "description": "int8 by row and column"}
INT8 |= {"bytes": 100, "bits_per_weight": 8.1}
POLAR = {
    "name": "polar",
    "config": {"name": "polar", "density": 0.5},
    "groups": 2,
    "kept": 1,
    "dense_blocks": 1,
}
SPEED = {
    "batch": 1, "prompt": 5, "new_tokens": 20, "tok_s": 1.0,
    "timings": {"engine-dense": {"tok_s": 1.0}, "engine-sparse": {"tok_s": 2.0}},
}  # fmt: skip


def group(name, **values):
    return {"config": CONFIG | {name: CONFIG[name] | values}}


CELLS = [
    ({"model": MODEL | {"fingerprint": "e" * 64}}, "model fingerprint"),
    ({"model": MODEL | {"dtype": "bfloat16"}}, "dtype"),
    ({"quantisation": INT8}, "quantisation"),
    ({"heads": POLAR}, "heads"),
    (group("protocol", dense_share=0.25), "protocol"),
    (group("suite", limit=7), "suite"),
    (group("calibration", sequences=3), "calibration"),
    (group("search", sparse_tokens="protocol"), "search tokens"),
    ({"method": {"name": "teal", "config": {"name": "teal", "greedy_step": 1.0}}}, "method settings"),
]
"""What a second record of a cell has otherwise, and what is said of it."""


FEW_BITS = "a frontier has weights as they are and pruned ones, not quantisation=int8"


@pytest.mark.parametrize("read", [read_table, read_frontier, read_real])
@pytest.mark.parametrize(("changes", "differs"), CELLS)
def test_two_cells_of_one_place_are_refused(tmp_path, read, changes, differs):
    write_cell(tmp_path, "dense", 0.0, 0)
    write_cell(tmp_path, "teal", 0.5, 10)
    write_cell(tmp_path, "teal", 0.5, 12, utc="2026-02-01T00:00:00+00:00", **changes)
    in_few_bits = read is read_frontier and differs == "quantisation"  # no frontier takes any
    says = FEW_BITS if in_few_bits else f"records of different {differs} do not belong"
    with pytest.raises(UserError, match=says) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
    assert ("tables quantised" if in_few_bits else "experiment_name=NAME") in str(caught.value)


def test_dense_cells_differ_by_their_calibration_where_weights_are_made_on_it(tmp_path):
    other = group("calibration", sequences=3)
    for text in ({}, other):
        write_cell(tmp_path / "own", "dense", 0.0, 0, **text)
        write_cell(tmp_path / "int8", "dense", 0.0, 0, quantisation=INT8, **text)
    read_table(tmp_path / "own")
    with pytest.raises(UserError, match="records of different calibration do not belong"):
        read_table(tmp_path / "int8")


@pytest.mark.parametrize("read", [read_table, read_real])
def test_records_from_before_pieces_could_be_chosen_are_of_the_pieces_of_then(tmp_path, read):
    def of(**piece: int) -> dict[str, object]:
        return {"config": CONFIG | {"calibration": {"name": "unseen"} | piece}}

    write_cell(tmp_path, "teal", 0.5, 10, **of())
    write_cell(tmp_path, "wina", 0.5, 10, **of(piece=8000))
    read(tmp_path)
    write_cell(tmp_path, "chess", 0.5, 10, **of(piece=16000))
    with pytest.raises(UserError, match=r"records of different calibration do not belong .*'piece': 16000"):
        read(tmp_path)


@pytest.mark.parametrize("read", [read_table, read_frontier, read_real])
def test_two_tokenizers_are_refused_and_records_that_do_not_say_are_read(tmp_path, read):
    write_cell(tmp_path, "dense", 0.0, 0)
    write_cell(tmp_path, "teal", 0.5, 10, model=MODEL | {"companions": "c" * 64})
    read(tmp_path)
    write_cell(tmp_path, "teal", 0.6, 10, model=MODEL | {"companions": "d" * 64})
    with pytest.raises(UserError, match="records of different files beside the weights do not belong"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "differs"), [cell for cell in CELLS if cell[1] not in ("dtype", "quantisation")]
)
def test_so_are_two_speeds(tmp_path, changes, differs):
    """Dtype and quantisation are no differences: a row of the table of speeds has its own."""
    write_cell(tmp_path, "teal", 0.5, 10, latency=SPEED)
    write_cell(tmp_path, "teal", 0.5, 10, latency=SPEED | {"tok_s": 3.0}, **changes)
    with pytest.raises(UserError, match=f"different {differs}"):
        read_speed(tmp_path)


@pytest.mark.parametrize("read", [read_table, read_frontier, read_real])
@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"model": MODEL | {"fingerprint": "e" * 64}}, "model fingerprint"),
        ({"model": MODEL | {"dtype": "bfloat16"}}, "dtype"),
        ({"quantisation": INT8}, "quantisation"),
        ({"heads": POLAR}, "heads"),
        (group("search", generations=2), "search budget"),
        (group("protocol", dense_share=0.25), "protocol"),
    ],
)
def test_one_name_is_one_thing_throughout_a_table(tmp_path, read, changes, differs):
    """Two checkpoints called alike; budgets told apart by values alone."""
    write_cell(tmp_path, "dense", 0.0, 0)
    write_cell(tmp_path, "teal", 0.5, 10)
    write_cell(tmp_path, "wina", 0.5, 10, **changes)
    says = FEW_BITS if read is read_frontier and differs == "quantisation" else f"different {differs}"
    with pytest.raises(UserError, match=says):
        read(tmp_path)


@pytest.mark.parametrize("changes", [{"fingerprint": "e" * 64}, {"dtype": "bfloat16"}])
def test_the_dense_model_is_of_the_same_checkpoint(tmp_path, changes):
    write_cell(tmp_path, "dense", 0.0, 0, model=MODEL | changes)
    write_cell(tmp_path, "teal", 0.5, 10)
    for read in (read_table, read_frontier, read_real):
        with pytest.raises(UserError, match="records of different"):
            read(tmp_path)


def test_a_cell_measured_again_elsewhere_is_the_newest(tmp_path):
    write_cell(tmp_path, "dense", 0.0, 0)
    write_cell(tmp_path, "teal", 0.5, 10)
    other = {
        "model": MODEL | {"device": "cuda", "device_name": "NVIDIA H200"},
        "versions": {"torch": "9", "transformers": "9"},
        "git": {"commit": "b" * 40, "dirty": True},
        "utc": "2026-02-01T00:00:00+00:00",
    } | group("suite", batch_tokens=32768)
    newest = write_cell(tmp_path, "teal", 0.5, 12, **other)
    assert read_table(tmp_path).cells["llama-mini", "teal", 0.5].folder == newest


def test_the_dense_model_knows_no_search_protocol_or_seed(tmp_path):
    write_cell(tmp_path, "dense", 0.0, 0)
    newest = write_cell(tmp_path, "dense", 0.0, 0, seed=3, utc="2026-02-01T00:00:00+00:00",
                        **group("search", generations=2))  # fmt: skip
    assert read_frontier(tmp_path).dense("llama-mini") is not None
    write_cell(tmp_path, "teal", 0.5, 10)
    assert newest in [cell.folder for cell in read_frontier(tmp_path).cells.values()]


def test_records_that_do_not_say_how_many_rows_share_a_mask_are_of_one_row(tmp_path):
    write_cell(tmp_path, "dense", 0.0, 0)
    write_cell(tmp_path, "teal", 0.5, 10)
    write_cell(tmp_path, "wina", 0.5, 12, **group("protocol", rows_sharing=1))
    for read in (read_table, read_frontier, read_real):
        assert len(read(tmp_path).cells) == 3
    write_cell(tmp_path, "chess", 0.5, 14, **group("protocol", rows_sharing=2))
    for read in (read_table, read_frontier, read_real):
        with pytest.raises(UserError, match="records of different protocol"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("note", "differs"),
    [
        ({"maximum": 0.5}, "largest sparsity"),
        ({"model": {"name": "llama-mini", "fingerprint": "e" * 64}}, "model fingerprint"),
    ],
)
def test_notes_of_another_model_are_refused(tmp_path, note, differs):
    write_cell(tmp_path, "dense", 0.0, 0)
    write_cell(tmp_path, "teal", 0.5, 10)
    first = {"model": {"name": "llama-mini", "fingerprint": "f" * 64}, "method": {"name": "chess"}}
    first |= {"sparsity": 0.7, "maximum": 0.69}
    write_json(tmp_path / "a" / "unreachable.json", first)
    assert read_table(tmp_path).unreachable == {("llama-mini", "chess", 0.7): 0.69}
    write_json(tmp_path / "b" / "unreachable.json", first | note)
    with pytest.raises(UserError, match=f"another {differs}"):
        read_table(tmp_path)
