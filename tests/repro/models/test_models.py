"""Checkpoints: what loads, and the one line that says why another does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file, save_file
from wisparse.method.errors import UserError
from wisparse.repro.cell.planning import model_identity
from wisparse.repro.configuration import REPOSITORY
from wisparse.repro.models.checkpoint import find_checkpoint, load_model, resolve_device
from wisparse.repro.models.weight_files import check_safetensors

LLAMA_MINI = REPOSITORY / "repro/embedded/models/llama-mini"
SHARD = "model-00001-of-00002.safetensors"


def settings(folder: Path | None, **changes: object) -> dict[str, object]:
    base = {
        "name": None,
        "source": "folder",
        "path": folder and str(folder),
        "device": "cpu",
        "dtype": "float32",
    }
    return base | changes


def test_a_local_checkpoint_loads_with_its_own_tokenizer(checkpoint):
    found = find_checkpoint(settings(checkpoint))
    loaded = load_model(found)
    assert (found.name, found.family) == ("my-llama", "llama")
    assert loaded.tokenizer.bos_token_id == 0
    assert next(loaded.model.parameters()).dtype == torch.float32
    assert not loaded.model.training
    assert load_model(find_checkpoint(settings(checkpoint))) is loaded


def test_the_fingerprint_is_of_the_content(checkpoint):
    same = find_checkpoint(settings(checkpoint)).fingerprint
    assert same == find_checkpoint(settings(LLAMA_MINI)).fingerprint
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint.parent / "other").mkdir()
    other = shutil.copytree(checkpoint, checkpoint.parent / "other", symlinks=True, dirs_exist_ok=True)
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-6}))
    assert find_checkpoint(settings(other)).fingerprint != same


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "generation_config.json",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
        "config.json",
    ],
)
def test_every_file_that_is_read_belongs_to_the_identity(checkpoint, name):
    before = model_identity(find_checkpoint(settings(checkpoint)))
    with (checkpoint / name).open("a") as file:
        file.write("\n")
    after = model_identity(find_checkpoint(settings(checkpoint)))
    assert before["companions"] != after["companions"]
    assert {"fingerprint", "companions", "dtype", "attention", "device"} == after.keys()
    (checkpoint / "README.md").write_text("no loader reads this")
    assert model_identity(find_checkpoint(settings(checkpoint))) == after


def test_a_file_that_changes_between_two_cells_of_a_sweep_is_noticed(checkpoint):
    first = find_checkpoint(settings(checkpoint))
    before = model_identity(first), load_model(first)
    config = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(config.replace("1e-05", "1e-06"))  # as many bytes as before
    second = find_checkpoint(settings(checkpoint))
    assert model_identity(second) != before[0]
    assert load_model(second).model.config.rms_norm_eps == 1e-6
    assert before[1].model.config.rms_norm_eps == 1e-5


def test_weights_replaced_after_they_were_found_are_never_taken_for_the_others(checkpoint):
    found = find_checkpoint(settings(checkpoint))
    identity = model_identity(found)
    tensors = {name: 2 * tensor for name, tensor in load_file(checkpoint / SHARD).items()}
    (checkpoint / SHARD).unlink()
    save_file(tensors, checkpoint / SHARD, metadata={"format": "pt"})
    assert model_identity(found) == identity  # what is recorded is what was found
    with pytest.raises(UserError, match=f"{SHARD} changed while it was read"):
        load_model(found)
    assert model_identity(find_checkpoint(settings(checkpoint)))["fingerprint"] != identity["fingerprint"]


def test_weights_overwritten_while_they_are_in_use_are_noticed(checkpoint):
    tensors = load_file(checkpoint / SHARD)
    _replace(checkpoint / SHARD, tensors)  # a file of its own, no link
    loaded = load_model(find_checkpoint(settings(checkpoint, dtype="bfloat16")))
    name = "model.layers.0.mlp.up_proj.weight"
    weight = loaded.model.get_parameter(name)
    (checkpoint / SHARD).rename(checkpoint / "kept")
    save_file(tensors, checkpoint / SHARD, metadata={"format": "pt"})
    loaded.check_weights()  # another file in its place leaves the loaded one as it is
    assert torch.equal(weight, tensors[name])
    (checkpoint / SHARD).unlink()
    (checkpoint / "kept").rename(checkpoint / SHARD)
    with (checkpoint / SHARD).open("r+b") as file:
        file.seek(-64, 2)
        file.write(bytes(64))
    with pytest.raises(UserError, match=f"{SHARD} was overwritten while its weights were in use"):
        loaded.check_weights()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", SHARD])
def test_content_that_was_not_hashed_before_it_changed_has_no_identity(checkpoint, name):
    found = find_checkpoint(settings(checkpoint))
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).unlink()
    (checkpoint / name).write_bytes(content + b" ")
    with pytest.raises(UserError, match=f"{name} changed while it was read"):
        model_identity(found)


def _stale_duplicate(folder: Path) -> None:
    first, second = (load_file(path) for path in sorted(folder.glob("*.safetensors")))
    name = next(name for name in first if "down_proj" in name)
    _replace(folder / SHARD.replace("00001", "00002", 1), second | {name: -first[name]})


def _two_sets(folder: Path) -> None:
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _integers(folder: Path) -> None:
    tensors = load_file(folder / SHARD)
    name = next(name for name in tensors if "down_proj" in name)
    _replace(folder / SHARD, tensors | {name: (50 * tensors[name]).round().to(torch.int8)})


def _replace(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


def _truncate(folder: Path) -> None:
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).unlink()
    (folder / SHARD).write_bytes(content[: len(content) // 2])


def _garble(folder: Path) -> None:
    (folder / SHARD).unlink()
    (folder / SHARD).write_bytes(b"<html>not found</html>")


def _other_family(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))


def _quantize(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))


def _adapt(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))


def _name_weights(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))


def _stray_window(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": 8}))


def _unlink(name: str):
    return lambda folder: (folder / name).unlink()


def _write(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "fetch it again"),
        (_garble, "truncated or no safetensors file"),
        (_unlink(SHARD), "is missing"),
        (_unlink("config.json"), "has no config.json"),
        (_write("config.json", "{"), "not valid JSON"),
        (_unlink("model.safetensors.index.json"), "holds no safetensors weights"),
        (_write("model.safetensors.index.json", "{}"), "lists no weights"),
        (_other_family, "'gpt2' is not supported; take a model of Llama, Mistral, Qwen2, Qwen3"),
        (_quantize, "quantized"),
        (_adapt, "holds an adapter .*merge it"),
        (_stale_duplicate, f"{SHARD} and model-00002-of-00002.safetensors both hold model.*down_proj.weight"),
        (_two_sets, "two sets of weights, model.safetensors and the shards of model.safetensors.index.json"),
        (_integers, f"{SHARD} holds 1 tensors that are no floats.*down_proj.weight of type I8"),
        (_name_weights, "transformers_weights=other.safetensors, which is not supported"),
        (_stray_window, "sliding_window=8, which Llama models do not know; remove it"),
        (_unlink("tokenizer.json"), "has no tokenizer"),
        (_write("tokenizer.json", "{}"), "the tokenizer cannot be loaded"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(checkpoint, damage, message):
    damage(checkpoint)
    with pytest.raises(UserError, match=message) as caught:
        load_model(find_checkpoint(settings(checkpoint)))
    assert "\n" not in str(caught.value)


def test_one_byte_too_few_is_seen(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.arange(6.0)}, path)
    check_safetensors(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="fetch it again"):
        check_safetensors(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": None}, r"needs model.path=DIR"),
        ({"path": "/no/such/folder"}, "is not a folder"),
        ({"dtype": "int8"}, "choose from float32, bfloat16, float16"),
        ({"device": "tpu"}, "choose auto, cpu, cuda or cuda:N"),
        ({"device": f"cuda:{torch.cuda.device_count()}"}, "CUDA device"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(UserError, match=message):
        find_checkpoint(settings(LLAMA_MINI, **changes))


def test_auto_takes_the_gpu_where_there_is_one():
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


def hub(name: str | None) -> dict[str, object]:
    return settings(None, source="hub", id=name, revision=None)


def test_a_hub_model_that_cannot_be_reached_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"run `hf download Qwen/Qwen2\.5-0\.5B`"):
        find_checkpoint(hub("Qwen/Qwen2.5-0.5B"))


def test_a_gated_hub_model_names_the_command(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        response = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
        raise GatedRepoError("gated", response=response)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(UserError, match=r"is gated.*run `hf auth login`"):
        find_checkpoint(hub("meta-llama/Llama-3.1-8B"))


@pytest.mark.parametrize(("name", "message"), [(None, "needs model.id=ORG/NAME"), ("a/b/c", "is no hub name")])
def test_hub_names_are_checked(name, message):
    with pytest.raises(UserError, match=message):
        find_checkpoint(hub(name))
