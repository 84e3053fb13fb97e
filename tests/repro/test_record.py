"""The record as types: every committed one comes back byte for byte, and what does not fit is said."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from wisparse.repro.archive import unpacked
from wisparse.repro.cost.reproduction_cost import composed
from wisparse.repro.measured.cells import MeasuredCell
from wisparse.repro.measured.comparable import check_comparable
from wisparse.repro.record import Record, RecordError
from wisparse.repro.record_facts import comparable, model_notes, suite_choice
from wisparse.repro.records import RECORD
from wisparse.repro.tables.speed.speed_data import SpeedData
from wisparse.repro.tables.speed.speed_table import speed_markdown
from wisparse.repro.tables.text import model_lines

from ..conftest import ROOT

RECORDS = ROOT / "results" / "records"
OF_A_QUESTION = 10
"""Every so many of its records are read: there are 2,000."""


def texts() -> Iterator[tuple[str, str]]:
    for path in sorted(RECORDS.rglob(RECORD)):
        yield str(path), path.read_text(encoding="utf-8")
    for archive in sorted(RECORDS.rglob("*.tar.xz")):
        with tarfile.open(archive) as opened:
            members = [member for member in opened if member.name.endswith(RECORD)]
            for member in members[:: OF_A_QUESTION if archive.parent.name == "questions" else 1]:
                yield f"{archive}: {member.name}", opened.extractfile(member).read().decode("utf-8")


@pytest.fixture(scope="module")
def contents() -> list[dict]:
    return [json.loads(text) for _, text in texts()]


@pytest.mark.slow
def test_every_committed_record_comes_back_byte_for_byte():
    number = 0
    for name, text in texts():
        found = Record.from_json(json.loads(text)).to_json()
        assert json.dumps(found, allow_nan=False, ensure_ascii=False, indent=1) + "\n" == text, name
        number += 1
    assert number > 250


@pytest.mark.slow
def test_what_a_record_says_of_itself(contents):
    records = [Record.from_json(content) for content in contents]
    assert {record.random_weights for record in records if record.model.name.endswith("-random")} == {True}
    assert {record.random_weights for record in records if record.model.name.endswith("-mini")} == {False}
    assert all(record.embedded == record.model.name.endswith("-mini") for record in records)
    assert any(record.hardware == "CPU (2 threads)" for record in records)
    assert all(record.hardware.startswith(("NVIDIA", "CPU (")) for record in records)
    assert all(len(record.commit) >= 7 for record in records)
    assert replace(records[0], surroundings=replace(records[0].surroundings, git=None)).commit == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content.pop("realised"), "lacks realised"),
        (lambda content: content["realised"].pop("tokens"), "realised lacks tokens"),
        (lambda content: content["model"].update(weights="random"), "model has unknown weights"),
        (lambda content: content.update(extra=1), "unknown extra"),
        (lambda content: content["realised"].update(tokens="many"), "realised.tokens is 'many'"),
        (lambda content: content["realised"].update(by_block=[0.5, None]), r"realised.by_block\[1\] is None"),
        (lambda content: content.update(seed=True), "seed is True"),
        (lambda content: content.update(tasks={"a": 1}), "tasks.a is not an object"),
        (lambda content: content.update(schema=2), "schema 2, expected 1"),
    ],
)
def test_what_does_not_fit_is_named(contents, damage, message):
    content = json.loads(json.dumps(contents[0]))
    damage(content)
    with pytest.raises(RecordError, match=message):
        Record.from_json(content)


OLD = {
    "suite": {"_target_": "wisparse.repro.suites.EmbeddedSuite", "limit": None},
    "calibration": {"_target_": "wisparse.repro.calibration_text.InstalledPackageText", "sequences": 16},
    "protocol": {"_target_": "wisparse.method.protocol.Protocol", "name": "half"},
    "latency": {"_target_": "wisparse.repro.latency.NotMeasured", "name": "none"},
}
NEW = {
    "suite": {"_target_": "wisparse.repro.evaluation.suites.EmbeddedSuite", "limit": None},
    "calibration": {"_target_": "wisparse.repro.embedded.calibration.InstalledPackageText", "sequences": 16},
    "protocol": {"_target_": "wisparse.method.token_policy.TokenPolicy", "name": "half"},
    "latency": {"_target_": "wisparse.repro.speed.no_latency.NoLatency", "name": "none"},
}


@pytest.mark.parametrize("part", OLD)
def test_where_a_class_lies_makes_no_other_settings(part):
    assert OLD[part] != NEW[part]
    assert comparable(OLD[part]) == comparable(NEW[part])
    assert comparable({"inside": [OLD[part]]}) == comparable({"inside": [NEW[part]]})
    assert comparable(OLD[part] | {"name": "other"}) != comparable(NEW[part])


@pytest.mark.slow
def test_tables_mix_cells_of_before_and_after_a_class_moved(contents):
    """And still refuse cells of another class."""
    old, new = ({"config": part | {"search": {"name": "quick"}}} for part in (OLD, NEW))
    model = {"name": "m", "fingerprint": "f", "dtype": "float32"}
    shared = {"seed": 0, "tasks": {}, "model": model, "sparsity": 0.5, "n_tokens": 8, "n_documents": 2}
    methods = [
        {"name": "teal", "config": {"mask": {"_target_": f"wisparse.{place}.StaticThreshold"}}}
        for place in ("method.mask", "method.rules")
    ]
    items = {"items": {}, "documents": []}
    cells = [
        MeasuredCell(record | shared | {"method": method}, items, Path(name))
        for record, method, name in zip((old, new), methods, ("old", "new"), strict=True)
    ]
    check_comparable(cells)
    cells[1].record["config"]["suite"]["_target_"] = "wisparse.repro.evaluation.suites.PerplexitySuite"
    with pytest.raises(Exception, match="records of different suite"):
        check_comparable(cells)


def test_the_suite_of_runs_without_accuracy_has_one_name():
    assert suite_choice("no") == suite_choice("none") == "none"
    assert suite_choice("embedded") == "embedded"


def test_speed_tables_say_where_weights_are_random(contents):
    timed = [content for content in contents if content.get("latency")]
    cells = {number: MeasuredCell(content, {}, Path()) for number, content in enumerate(timed)}
    notes = [line for line in speed_markdown(SpeedData(cells)).splitlines() if "M parameters" in line]
    models = [model for line in notes for model in line.strip("- .").split(", ") if ":" in model]
    assert len(models) >= 5
    for model in models:
        assert ("-random:" in model) == ("random weights" in model), model


def wisparse(**settings):
    return {"_target_": "wisparse.method.wisparse.WiSparse", "name": "wisparse", **settings}


def test_the_switch_that_older_records_have_for_uniform_blocks_says_what_the_allocator_says():
    searched = {"_target_": "wisparse.method.search.evolutionary.EvolutionarySearch", "name": "evolutionary"}
    uniform = {"_target_": "wisparse.method.search.blocks.UniformBlocks", "name": "uniform"}
    assert comparable(wisparse(coarse=True, allocator=searched)) == comparable(wisparse(allocator=searched))
    assert comparable(wisparse(coarse=False, allocator=searched)) == comparable(wisparse(allocator=uniform))
    assert comparable(wisparse(allocator=searched)) != comparable(wisparse(allocator=uniform))


def test_what_must_be_known_of_a_model_is_said(contents):
    plain = contents[0]
    assert all(model_notes(one) == [] for one in contents if not {"quantisation", "heads"} & one.keys())
    origin = {"file": "a.gguf", "sha256": "12ab", "quantisation": "Q4_1", "types": {"Q4_1": 3, "F32": 1}}
    config = plain["config"] | {"model": plain["config"]["model"] | {"notes": {"embedded": "It knows these."}}}
    model = plain["model"] | {"name": "small", "dtype": "bfloat16", "origin": origin}
    content = plain | {"model": model, "config": config, "suite": plain["suite"] | {"name": "embedded"}}
    assert model_notes(content) == [
        "small: weights quantised to Q4_1 by others (tensors: Q4_1 3, F32 1), dequantised to bfloat16; "
        "from a.gguf, sha256 12ab.",
        "small: It knows these.",
    ]
    assert model_lines([content, content]) == model_notes(content)
    carried = content | {"model": model | {"origin": origin | {"package": "carrier 1, sha256 34cd"}}}
    assert "from carrier 1, sha256 34cd." in model_notes(carried | {"suite": {"name": "wikitext"}})[0]
    assert len(model_notes(carried | {"suite": {"name": "wikitext"}})) == 1
    assert Record.from_json(content).to_json() == content


@pytest.mark.parametrize("method", ["teal", "wina", "wisparse", "rsparse", "chess"])
def test_a_methods_settings_are_those_of_older_records(method):
    """What has become a setting since is, at what it was, no other setting: old and new cells share a table."""
    (old,) = unpacked(RECORDS / "table1").glob(f"mistral-mini-{method}-0.5-*/{RECORD}")
    config = composed("config", f"method={method}", "search=medium").method
    today = OmegaConf.to_container(config, resolve=True)
    assert comparable(json.loads(old.read_text(encoding="utf-8"))["method"]["config"]) == comparable(today)
