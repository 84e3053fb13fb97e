"""One cell of a table: configuration → model → calibration → plan → measurement → record."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from ...method.apply import applied
from ...method.errors import OutOfReachError, UserError
from .. import processes
from ..configuration import digest, files_digests, portable, sources_digest
from ..models.checkpoint import Checkpoint, LoadedModel, find_checkpoint, load_model
from ..records import RECORD, SCHEMA, RecordError, load_record, save_record, surroundings, versions
from ..text.overlap import checked_overlap
from .planning import Planner, ids_digest, model_identity, set_seeds

log = logging.getLogger(__name__)

HARNESS_SOURCES = (
    "cell/cell.py", "cell/planning.py", "embedded", "evaluation", "models", "processes.py", "text",
)  # fmt: skip
RESULT_SOURCES = ("method", "baselines", "kernels/reference.py", *(f"repro/{name}" for name in HARNESS_SOURCES))
LATENCY_SOURCES = ("kernels", "repro/speed/latency.py", "repro/speed/transformers_decode.py")
"""Code that results depend on, and that measured speed depends on besides: after a change to it a finished cell
is computed again."""

PARTS = ("method", "protocol", "calibration", "suite", "latency")
"""Configuration groups that are built into objects."""


@dataclass(frozen=True)
class Cell:
    """A checked configuration: what is to be measured, and the folder its record belongs in."""

    config: DictConfig
    checkpoint: Checkpoint
    method: Any
    protocol: Any
    calibration: Any
    suite: Any
    latency: Any
    sparsity: float
    name: str
    key: str

    @property
    def folder(self) -> Path:
        """Fixed by the key, so that an interrupted sweep finds its finished cells."""
        return Path(self.config.output_dir) / self.config.experiment_name / f"{self.name}-{self.key[:8]}"


def prepare(config: DictConfig) -> Cell:
    """Check everything that can be checked before weights are loaded; raises UserError."""
    sparsity = _checked_sparsity(config.sparsity)
    if not isinstance(config.seed, int) or config.seed < 0:
        raise UserError(f"seed={config.seed} is not a whole number from 0 up")
    parts = {name: instantiate(config[name]) for name in PARTS}
    method = parts["method"]
    if method.name == "dense":
        sparsity = 0.0  # one dense cell serves all sparsities
    processes.check(config.model.device, config.latency.name)
    checkpoint = find_checkpoint(OmegaConf.to_container(config.model, resolve=True))
    identity = {
        **{name: portable(config[name]) for name in parts},
        "sparsity": sparsity,
        "seed": config.seed,
        "search_tokens": config.search.sparse_tokens,
        "model": model_identity(checkpoint),
        "files": _named_files(config) | files_digests(parts["suite"], parts["calibration"]),
        "sources": sources_digest(*RESULT_SOURCES, *(() if config.latency.name == "none" else LATENCY_SOURCES)),
        "versions": versions(),
    }
    name = f"{checkpoint.name.replace('/', '_')}-{method.name}-{sparsity:g}"
    return Cell(config, checkpoint, **parts, sparsity=sparsity, name=name, key=digest(identity))


def finished_record(cell: Cell) -> dict[str, Any] | None:
    """The record of a finished cell, or None when it is to be computed; a damaged record is warned of."""
    if cell.config.force or not (cell.folder / RECORD).exists():
        return None
    try:
        return load_record(cell.folder)
    except RecordError as error:
        log.warning("the stored record is damaged and the cell is computed again: %s", error)
        return None


def measure(cell: Cell) -> dict[str, Any]:
    """Compute one cell and write its record and items into the cell's folder; returns the record.

    Of several processes the main one writes.
    """
    config, seconds = cell.config, {}
    if cell.checkpoint.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    with _timed(seconds, "load"):
        loaded = load_model(cell.checkpoint)
    input_ids = cell.calibration.input_ids(loaded.tokenizer)
    planner = Planner(config, cell.method, cell.protocol, cell.calibration.batch_size, loaded, input_ids)
    overlap = checked_overlap(input_ids, loaded.tokenizer, cell.suite.texts(), config.largest_overlap)
    with _timed(seconds, "plan"):
        cached = planner.plan(cell.sparsity)
    set_seeds(config.seed)
    counting = processes.SharedTrafficCounter
    with _timed(seconds, "evaluation"), applied(loaded.model, cached.plan, cell.protocol, counting) as session:
        evaluation = cell.suite.run(loaded.model, loaded.tokenizer, session)
        realised = session.report()
    with _timed(seconds, "latency"):
        latency = cell.latency.measure(loaded.model, cached.plan, lambda other: planner.plan(other).plan)
    items = evaluation.items_to_dict()
    record = {
        "schema": SCHEMA,
        "cell": {"name": cell.name, "key": cell.key},
        "model": _describe_model(loaded),
        "method": {"name": cell.method.name, "config": portable(config.method)},
        "protocol": {"name": cell.protocol.name, "description": cell.protocol.describe()},
        "calibration": _describe_calibration(cell.calibration.name, input_ids) | {"overlap": overlap.to_dict()},
        "suite": {"name": _suite_name(config.suite), "config": portable(config.suite)},
        "sparsity": cell.sparsity,
        "realised": realised,
        **evaluation.to_dict(),
        "latency": latency,
        "plan": {
            "key": cached.key,
            "sha256": cached.sha256,
            "from_cache": cached.from_cache,
            "seconds_by_stage": cached.plan.provenance["stages"],
            "provenance": cached.plan.provenance,
        },
        "seconds": seconds,
        "memory": _peak_memory(cell.checkpoint.device),
        "seed": config.seed,
        **surroundings(),
        "config": portable(config),
        "items_sha256": digest(items),
    }
    _check_finite(record)
    if processes.is_main():
        save_record(cell.folder, record, items)
    return record


def unreachable_note(cell: Cell, error: OutOfReachError) -> dict[str, Any]:
    """Note in a table on a cell that its method cannot reach."""
    return {
        "schema": SCHEMA,
        "cell": {"name": cell.name, "key": cell.key},
        "model": {"name": cell.checkpoint.name},
        "method": {"name": cell.method.name},
        "sparsity": cell.sparsity,
        "maximum": error.maximum,
        "reason": str(error),
        **surroundings(),
    }


def _checked_sparsity(sparsity: Any) -> float:
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise UserError(f"sparsity={sparsity} is outside [0, 1); 0.5 leaves half of the block weights unread")
    return float(sparsity)


def _named_files(config: DictConfig) -> dict[str, str]:
    """sha256 of every file that the suite or the calibration names: its content counts, not its name."""
    named = {}
    for part in ("suite", "calibration"):
        for key, value in config[part].items():
            if isinstance(value, str) and not key.startswith("_") and Path(value).expanduser().is_file():
                named[f"{part}.{key}"] = hashlib.sha256(Path(value).expanduser().read_bytes()).hexdigest()
    return named


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 3)


def _describe_model(loaded: LoadedModel) -> dict[str, Any]:
    checkpoint = loaded.checkpoint
    return {
        "name": checkpoint.name,
        "family": checkpoint.family,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "dtype": checkpoint.dtype,
        "device": checkpoint.device,
        "device_name": torch.cuda.get_device_name(checkpoint.device) if "cuda" in checkpoint.device else "CPU",
        "threads": torch.get_num_threads(),
        "processes": processes.count(),
        "fingerprint": checkpoint.fingerprint,
    }


def _describe_calibration(name: str, input_ids: Tensor) -> dict[str, Any]:
    return {
        "name": name,
        "sequences": input_ids.shape[0],
        "length": input_ids.shape[1],
        "tokens": input_ids.numel(),
        "sha256": ids_digest(input_ids),
    }


def _suite_name(suite: DictConfig) -> str:
    # EmbeddedSuite → embedded, as in conf/suite, unless several configurations share a class.
    return suite.get("name") or suite._target_.rpartition(".")[2].removesuffix("Suite").lower()


def _peak_memory(device: str) -> dict[str, int]:
    """Bytes; the resident size is the process's peak so far, which in a sweep covers earlier cells too."""
    peak = {"rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device.startswith("cuda"):
        peak["cuda_bytes"] = torch.cuda.max_memory_allocated(device)
    return peak


def _check_finite(record: dict[str, Any]) -> None:
    numbers = [record["average"], record["perplexity"], *(task["value"] for task in record["tasks"].values())]
    if not all(math.isfinite(number) for number in numbers if number is not None):
        raise UserError(
            f"{record['cell']['name']}: the model's outputs are not finite in {record['model']['dtype']}; "
            "try model.dtype=float32"
        )


def record_line(record: dict[str, Any]) -> str:
    """The record as one line of JSON."""
    return json.dumps(record, separators=(",", ":"), allow_nan=False)
