"""experiment=full_size on shrunk models: from the configuration to the table, no part left out."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hydra import compose
from wisparse.method.errors import UserError
from wisparse.repro.cell.cell import prepare
from wisparse.repro.cell.measure import measure
from wisparse.repro.configuration import composing
from wisparse.repro.records import sealed, write_json
from wisparse.repro.tables.full_size_table import FULL_SIZE, read_full_size

from ..benchmark_data import write_made_up_mirror
from ..models.test_random_models import SHRUNK

pytestmark = pytest.mark.slow
QUESTION = "What will Kim do next?"
"""Text of an item of the mirror: it must not get into records."""


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full_size")
    write_made_up_mirror(folder / "mirror")
    overrides = [
        "experiment=full_size",
        *(f"model.architecture.{name}={value}" for name, value in SHRUNK.items()),
        *("model.dtype=float32", "model.device=cpu", "search=minimal", "latency.new_tokens=4"),
        *("suite.tasks=[siqa,wic]", f"data.root={folder / 'mirror'}", "suite.limit=3"),
        *(f"output_dir={folder / 'outputs'}", f"cache_dir={folder / 'plans'}"),
    ]
    for method in ("teal", "dense"):
        with composing():
            config = compose("config", overrides=[*overrides, f"method={method}"])
        measure(prepare(config))
    return folder / "outputs" / "full_size"


def test_every_part_of_a_cell_has_its_seconds_and_scores_stand_beside_chance(records):
    rows = list(csv.DictReader(io.StringIO(FULL_SIZE.csv(read_full_size(records)))))
    assert [row["method"] for row in rows] == ["dense", "teal"]
    for row in rows:
        assert row["items"] == "6"
        assert float(row["chance"]) == pytest.approx(100 * (1 / 3 + 1 / 2) / 2, abs=0.01)
        assert float(row["average"]) == pytest.approx((float(row["siqa"]) + float(row["wic"])) / 2, abs=0.01)
        assert all(float(row[f"{part}_s"]) > 0 for part in ("evaluation", "latency"))
        assert row["peak_gpu_bytes"] == ""
    dense, teal = rows
    assert dense["tok_s"] == dense["dense_tok_s"] != teal["tok_s"] != teal["dense_tok_s"]
    assert float(teal["realised_sparsity"]) == pytest.approx(0.5, abs=0.1)


def test_the_table_says_that_its_scores_are_chance_and_what_no_gpu_measured(records):
    text = FULL_SIZE.markdown(read_full_size(records))
    assert "Random weights: every score is chance" in text
    assert text.count("| not measured |") == 2


def test_records_hold_no_text_of_an_item(records):
    kept = [path.read_text(encoding="utf-8") for path in records.rglob("*.json")]
    assert len(kept) == 4
    assert not any(QUESTION in text for text in kept)


def test_trained_weights_have_no_place_in_it(records, tmp_path):
    (path,) = records.glob("*-dense-*/record.json")
    copy = tmp_path / "cell"
    copy.mkdir()
    trained = path.read_text(encoding="utf-8").replace('"weights": "random"', '"weights": "pretrained"')
    write_json(copy / "record.json", sealed(json.loads(trained)))
    (copy / "items.json").write_text((path.parent / "items.json").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UserError, match="trained weights"):
        read_full_size(tmp_path)
