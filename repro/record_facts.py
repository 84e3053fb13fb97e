"""What follows from a record's JSON of any age: its device, what kind of model it is of, names of today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Settings = dict[str, Any]

EMBEDDED_MODELS = "repro/embedded/models/"
RENAMED = {"NotMeasured": "NoLatency", "Protocol": "TokenPolicy"}
"""Classes that older records name otherwise."""

UNIFORM = {"_target_": "UniformBlocks", "name": "uniform"}
"""Settings of WiSparse's first stage where it is left out."""

ADDED: Mapping[str, Settings] = {
    "TEAL": {"mask": {"_target_": "StaticThreshold"}},
    "WINA": {"mask": {"_target_": "TopK"}},
    "WiSparse": {
        "mask": {"_target_": "StaticThreshold"},
        "norm_order": 2,
        "order": ["coarse", "greedy", "alpha"],
        "greedy_unit": "parameters",
        "block_error": {"_target_": "BlockError", "form": "squared", "positions": "all"},
        "block_inputs": "dense",
        "divergence_positions": "all",
    },
}
"""Settings of methods that older records do not name, by class: what it did before they were settings."""

RENAMED_SUITES = {"no": "none"}
"""Suites that older records name otherwise."""


def hardware(model: dict[str, Any]) -> str:
    """Name of the device that a record's model ran on; of a CPU with its threads."""
    if model["device"] != "cpu":
        return model["device_name"]
    threads = model["threads"]
    return f"CPU ({threads} thread{'' if threads == 1 else 's'})"


def is_embedded(config: dict[str, Any]) -> bool:
    """Whether a record's configuration names a model of this repository."""
    return str(config["model"].get("path", "")).startswith(EMBEDDED_MODELS)


def has_random_weights(config: dict[str, Any]) -> bool:
    """Whether a record's configuration asks for random weights."""
    return config["model"].get("weights") == "random"


def is_pruned(record: dict[str, Any]) -> bool:
    """Whether weights were pruned: a format of weights that counts an index of those that are kept."""
    return "index" in (record.get("quantisation") or {}).get("config", {})


def model_notes(record: dict[str, Any]) -> list[str]:
    """Sentences that belong beside a record's model: what it was made of, what it may know of the suite."""
    model, notes = record["model"], []
    if origin := model.get("origin"):
        source = origin.get("package") or f"{origin['file']}, sha256 {origin['sha256']}"
        types = ", ".join(f"{name} {count}" for name, count in origin["types"].items())
        notes.append(
            f"{model['name']}: weights quantised to {origin['quantisation']} by others (tensors: {types}), "
            f"dequantised to {model['dtype']}; from {source}."
        )
    if found := record.get("quantisation"):
        made, besides = ("pruned", "index") if is_pruned(record) else ("quantised", "scales")
        notes.append(
            f"{model['name']}: weights {made} here to {found['description']}, "
            f"{found['bits_per_weight']:.2f} bits a weight with {besides}, computed with dequantised."
        )
    if found := record.get("heads"):
        notes.append(
            f"{model['name']}: attention looks at {found['kept']} of {found['groups']} key-value groups from "
            f"block {found['dense_blocks']} on, chosen for each sparse token by routers, heads={found['name']}."
        )
    if note := (record["config"]["model"].get("notes") or {}).get(suite_choice(record["suite"]["name"])):
        notes.append(f"{model['name']}: {note}")
    return notes


def suite_choice(name: str) -> str:
    """What `suite=` takes for the name of a suite in a record of any age."""
    return RENAMED_SUITES.get(name, name)


def comparable(settings: Any) -> Any:
    """Settings with classes named by their own names alone, and by their present ones.

    Where a class lies, what it was called, and what has become a setting since make two cells no less of the
    same settings.
    """
    if isinstance(settings, list):
        return [comparable(entry) for entry in settings]
    if not isinstance(settings, dict):
        return settings
    found = {name: comparable(value) for name, value in settings.items()}
    if found.pop("coarse", True) is False:  # older records: a switch for what the allocator now says
        found["allocator"] = dict(UNIFORM)
    if (
        evolution := found.pop("evolution", None)
    ) is not None:  # older records: the allocator, when there was one
        found.setdefault("allocator", evolution | {"name": "evolutionary"})
    if isinstance(target := settings.get("_target_"), str):
        own = target.rpartition(".")[2]
        found = dict(ADDED.get(own, {})) | found | {"_target_": RENAMED.get(own, own)}
    return found
