"""Finished cells made up for tests of what is made from records: every number in them is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from wisparse.repro.configuration import digest
from wisparse.repro.record import SCHEMA, SECTIONS
from wisparse.repro.records import save_record

TASKS = ("next_line", "function_body")
GENERATOR = np.random.default_rng(0)
DENSE_OUTCOMES = {task: (GENERATOR.random(200) < 0.8).astype(float) for task in TASKS}
DOCUMENTS = [{"nats": 300.0 + 7 * i, "tokens": 100 + i, "bytes": 400} for i in range(30)]
CONFIG = {
    "model": {"path": "repro/embedded/models/llama-mini", "name": "llama-mini"},
    "protocol": {"name": "half"},
    "suite": {"limit": None, "batch_tokens": 4096},
    "search": {"name": "quick", "sparse_tokens": "all"},
    "calibration": {"name": "embedded"},
}


def outcomes(broken: float) -> dict[str, list[float]]:
    """The dense outcomes with the first `broken` right answers of each task turned wrong."""
    result = {}
    for task, dense in DENSE_OUTCOMES.items():
        changed = dense.copy()
        changed[np.flatnonzero(dense)[: int(broken)]] = 0.0
        result[task] = changed.tolist()
    return result


def write_cell(
    root: Path,
    name: str,
    sparsity: float,
    broken: float,
    details: object = None,
    dense_documents: list[dict[str, float]] = DOCUMENTS,
    **changes: object,
) -> Path:
    """A finished cell whose perplexity is the dense one times 1.01 for each broken answer."""
    stretch = math.log(1.01) * broken
    documents = [entry | {"nats": entry["nats"] + entry["tokens"] * stretch} for entry in dense_documents]
    items = {"items": outcomes(broken), "documents": documents} | ({"details": details} if details else {})
    tasks = {
        task: {
            "metric": "acc",
            "value": sum(found) / len(found),
            "stderr": 0.03,
            "n": len(found),
            "chance": 0.25,
        }
        for task, found in items["items"].items()
    }
    nats, tokens, size = (sum(entry[part] for entry in documents) for part in ("nats", "tokens", "bytes"))
    record = dict.fromkeys(SECTIONS) | {
        "schema": SCHEMA,
        "model": {
            "name": "llama-mini",
            "device": "cpu",
            "device_name": "CPU",
            "threads": 2,
            "dtype": "float32",
            "fingerprint": "f" * 64,
        },
        "method": {"name": name, "config": {"name": name}},
        "protocol": {"name": "half", "description": "half of the tokens"},
        "calibration": {"name": "embedded", "sequences": 16, "length": 512},
        "suite": {"name": "embedded", "config": {"limit": None, "documents": 30}},
        "sparsity": sparsity,
        "realised": {
            "realised_sparsity": sparsity + 0.001,
            "bytes_per_token": 1e7 * (1 - sparsity),
            "dense_bytes_per_token": 1e7,
        },
        "tasks": tasks,
        "average": 100 * sum(task["value"] for task in tasks.values()) / len(tasks),
        "perplexity": math.exp(nats / tokens) if documents else None,
        "bits_per_byte": nats / math.log(2) / size if documents else None,
        "n_documents": len(documents),
        "n_tokens": tokens,
        "plan": {"seconds_by_stage": {"coarse": 4.0}, "provenance": {"evaluations": 7}},
        "seconds": {"load": 1.0, "plan": 5.0, "evaluation": 30.0},
        "command": f"python repro/run.py method={name} sparsity={sparsity:g}",
        "seed": 0,
        "versions": {"torch": "2.13.0", "transformers": "5.20.2"},
        "git": {"commit": "a" * 40, "dirty": False},
        "utc": "2026-01-01T00:00:00+00:00",
        "config": CONFIG,
        "items_sha256": digest(items),
        **changes,
    }
    folder = root / f"llama-mini-{name}-{sparsity:g}-{digest(record)[:8]}"
    save_record(folder, record, items)
    return folder
