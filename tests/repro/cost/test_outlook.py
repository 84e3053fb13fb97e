"""What is said before a table of the papers' models is begun."""

import json

import pytest
import torch
from safetensors.torch import save_file
from wisparse.method.errors import UserError
from wisparse.repro.cost import outlook as module
from wisparse.repro.cost.outlook import download, free_bytes, hours, main, on_disk, outlook
from wisparse.repro.cost.reproduction_cost import composed, jobs, makespan, measured_rates, weight_bytes

MODELS = ["llama3.1-8b", "mistral-7b", "qwen2.5-7b"]


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "hub_cache", lambda: tmp_path / "hub")
    monkeypatch.setattr(module, "on_disk", lambda model: False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_hours_are_those_of_the_gpu_that_is_here():
    device, rates = measured_rates()[0]
    alone = makespan([rates.minutes(job) for job in jobs("table1_paper")], 1) / 60
    lines = outlook("table1_paper", device)
    assert lines[0] == "table1_paper: 48 cells, a dense one for each model; 0 are finished and kept."
    assert lines[1] == f"From the start, at rates measured on a {device}: {alone:.1f} h on 1 GPU."
    assert len(lines) == 3
    assert float(hours(jobs("table1_paper"), rates, 8).split()[0]) < alone / 4


def test_a_gpu_that_was_not_measured_gets_no_hours_of_its_own():
    lines = outlook("table1_paper", "a GPU of tomorrow")
    assert sum("rates measured on a NVIDIA" in line for line in lines) == len(measured_rates())
    assert any(line.startswith("On a a GPU of tomorrow, which is here: not measured") for line in lines)
    assert any("on CPU cores: not measured" in line for line in outlook("table1_paper", None))


def test_finished_cells_are_counted(tmp_path):
    folder = tmp_path / "outputs" / "table1_paper" / "llama3.1-8b-dense-0-12345678"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("{}")
    assert "1 are finished" in outlook("table1_paper", None)[0]


def test_the_download_is_what_is_not_on_disk_yet(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "on_disk", lambda model: model != "mistral-7b")
    assert download(MODELS, tmp_path).startswith(
        f"To download: {weight_bytes('mistral-7b') / 1e9:.1f} GB (mistral-7b"
    )
    monkeypatch.setattr(module, "on_disk", lambda model: True)
    assert download(MODELS, tmp_path) == f"Weights: all of {', '.join(MODELS)} are in {tmp_path}."


def test_a_checkpoint_without_all_of_its_shards_is_not_on_disk(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert not on_disk("llama3.1-8b")
    kept = tmp_path / f"models--{composed('config', 'model=llama3.1-8b').model.id.replace('/', '--')}"
    snapshot, commit = kept / "snapshots" / ("0" * 40), kept / "refs" / "main"
    snapshot.mkdir(parents=True)
    commit.parent.mkdir()
    commit.write_text(snapshot.name)
    shards = {name: f"{name}.safetensors" for name in ("first", "second")}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    for name, whole in (("first", False), ("second", True)):
        save_file({name: torch.zeros(2)}, snapshot / shards[name])
        assert on_disk("llama3.1-8b") == whole


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "free_bytes", lambda folder: 3e9)
    with pytest.raises(UserError, match=r"45\.8 GB of weights .* has 3\.0 GB free: make room"):
        download(MODELS, tmp_path / "hub")


def test_free_bytes_of_a_folder_that_is_not_there_yet(tmp_path):
    assert free_bytes(tmp_path / "a" / "b") == pytest.approx(free_bytes(tmp_path), rel=0.2)


def test_without_a_gpu_nothing_is_begun_unless_cpu_cores_are_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["outlook", "table1_paper", "--", "suite.limit=5"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert "on CPU cores: not measured" in said.out
    assert "take a GPU, and none is here; on CPU cores: OVERRIDES=model.device=cpu" in said.err
    monkeypatch.setattr("sys.argv", ["outlook", "table1_paper", "--", "model.device=cpu"])
    main()
    assert not capsys.readouterr().err
