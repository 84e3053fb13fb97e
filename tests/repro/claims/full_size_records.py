"""Records as a run of a large model would leave them, with scores that a test chooses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from wisparse.repro.configuration import digest
from wisparse.repro.record import SCHEMA, SECTIONS
from wisparse.repro.records import save_record

ITEMS = 1000


def write_record(
    results: Path,
    method: str,
    scores: dict[str, float],
    *,
    sparsity: float = 0.5,
    model: str = "llama3.1-8b",
    config: dict[str, Any] | None = None,
) -> Path:
    """A finished cell under suite=paper whose tasks of 1000 items score `scores` percent."""
    right = {task: round(ITEMS * score / 100) for task, score in scores.items()}
    items = {"items": {task: [1.0] * n + [0.0] * (ITEMS - n) for task, n in right.items()}, "documents": []}
    tasks = {}
    for task, n in right.items():
        share = n / ITEMS
        stderr = math.sqrt(share * (1 - share) / (ITEMS - 1))
        tasks[task] = {"metric": "acc", "value": share, "stderr": stderr, "n": ITEMS, "chance": 0.0}
    settings = {
        "model": {"name": model, "weights": "pretrained"},
        "method": {"name": method},
        "protocol": {"name": "half"},
        "search": {"name": "paper", "sparse_tokens": "all"},
        "calibration": {"name": "paper"},
        "suite": {"name": "paper", "limit": None},
    }
    for group, changes in (config or {}).items():
        settings[group] = settings[group] | changes
    record = dict.fromkeys(SECTIONS) | {
        "schema": SCHEMA,
        "model": {"name": model, "fingerprint": "f" * 64, "dtype": "bfloat16"},
        "method": {"name": method, "config": {"name": method}},
        "suite": {"name": "paper", "config": settings["suite"]},
        "sparsity": sparsity,
        "tasks": tasks,
        "average": 100 * sum(right.values()) / ITEMS / len(right),
        "n_documents": 0,
        "n_tokens": 0,
        "seed": 0,
        "command": "",
        "utc": "2026-01-01T00:00:00+00:00",
        "config": settings,
        "items_sha256": digest(items),
    }
    folder = results / "records" / "paper" / f"{model}-{method}-{sparsity:g}"
    save_record(folder, record, items)
    return folder
