"""One cell measured: model → calibration → plan → evaluation and speed → record."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from ...method.apply import applied
from ...method.errors import UserError
from .. import processes
from ..configuration import digest, portable
from ..models.checkpoint import LoadedModel, load_model
from ..records import SCHEMA, save_record, surroundings
from ..text.overlap import checked_overlap
from .planning import Planner, ids_digest, set_seeds

if TYPE_CHECKING:
    from .cell import Cell


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
