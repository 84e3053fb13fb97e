"""Files beside the weights: what makes them others, and what does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from wisparse.repro.configuration import REPOSITORY
from wisparse.repro.measured.cells import every_cell
from wisparse.repro.measured.deciding import FORMER_COMPANIONS, companions_of
from wisparse.repro.models import content_hash
from wisparse.repro.models.content_hash import FoundFiles, companions


def hashed(folder: Path) -> str:
    return FoundFiles.find(companions(folder)).names_sha256(folder)


def test_a_tokenizer_stored_with_other_white_space_is_the_same(checkpoint):
    file = checkpoint / "tokenizer.json"
    values = json.loads(file.read_text())
    before = hashed(checkpoint)
    file.write_text(json.dumps(values, separators=(",", ":")))
    assert hashed(checkpoint) == before
    values["model"]["vocab"] = dict(reversed(values["model"]["vocab"].items()))
    file.write_text(json.dumps(values))
    assert hashed(checkpoint) != before


def test_a_tokenizer_that_is_no_json_is_hashed_as_it_is(checkpoint):
    file = checkpoint / "tokenizer.json"
    file.write_text("{")
    before = hashed(checkpoint)
    file.write_text("{ ")
    assert hashed(checkpoint) != before


@pytest.mark.parametrize("model", ["llama-mini", "mistral-mini", "qwen-mini"])
def test_files_beside_embedded_weights_are_those_of_the_committed_cells(model):
    record = next(
        cell.record
        for cell in every_cell([REPOSITORY / "results/records/table1.tar.xz"])
        if cell.record["model"]["name"] == model and cell.record["model"].get("companions")
    )
    assert hashed(REPOSITORY / "repro/embedded/models" / model) == record["model"]["companions"]


@pytest.mark.parametrize("model", ["llama-mini", "mistral-mini"])
def test_a_former_hash_of_embedded_files_is_of_the_same_files(model, monkeypatch):
    folder = REPOSITORY / "repro/embedded/models" / model
    now = hashed(folder)
    monkeypatch.setattr(content_hash, "_of_values", content_hash._of_states)
    former = hashed(folder)
    assert former in FORMER_COMPANIONS
    assert companions_of({"model": {"companions": former}}) == now
