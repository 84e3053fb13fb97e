"""One cell measured: model → calibration → plan → evaluation and speed → record."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...method.apply import applied
from ...method.errors import UserError
from .. import processes
from ..configuration import digest, portable
from ..models.checkpoint import LoadedModel, load_model
from ..models.weights import ATTENTION
from ..record import (
    SCHEMA,
    CalibrationFacts,
    CellName,
    Configured,
    Latency,
    Memory,
    ModelFacts,
    PlanFacts,
    ProtocolFacts,
    Realised,
    Record,
    Scores,
)
from ..records import save_record, surroundings
from ..text.overlap import Overlap, checked_overlap
from ..typed_json import decoded
from .plan_cache import CachedPlan
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
    record = Record(
        schema=SCHEMA,
        cell=CellName(cell.name, cell.key),
        model=_model_facts(loaded),
        method=Configured(cell.method.name, portable(config.method)),
        protocol=ProtocolFacts(cell.protocol.name, cell.protocol.describe()),
        calibration=_calibration_facts(cell.calibration.name, input_ids, overlap),
        suite=Configured(cell.suite.name, portable(config.suite)),
        sparsity=cell.sparsity,
        realised=decoded(Realised, realised),
        scores=decoded(Scores, evaluation.to_dict()),
        latency=None if latency is None else decoded(Latency, latency),
        plan=_plan_facts(cached),
        seconds=seconds,
        memory=_peak_memory(cell.checkpoint.device),
        seed=config.seed,
        surroundings=surroundings(),
        config=portable(config),
        items_sha256=digest(items),
    )
    _check_finite(record)
    content = record.to_json()
    if processes.is_main():
        save_record(cell.folder, content, items)
    return content


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = round(time.perf_counter() - start, 3)


def _model_facts(loaded: LoadedModel) -> ModelFacts:
    checkpoint = loaded.checkpoint
    return ModelFacts(
        name=checkpoint.name,
        family=checkpoint.family,
        parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
        dtype=checkpoint.dtype,
        device=checkpoint.device,
        device_name=torch.cuda.get_device_name(checkpoint.device) if "cuda" in checkpoint.device else "CPU",
        threads=torch.get_num_threads(),
        processes=processes.count(),
        fingerprint=checkpoint.fingerprint,
        companions=checkpoint.companions,
        attention=ATTENTION,
        origin=checkpoint.origin and checkpoint.origin.to_dict(),
    )


def _calibration_facts(name: str, input_ids: Tensor, overlap: Overlap) -> CalibrationFacts:
    sequences, length = input_ids.shape
    return CalibrationFacts(
        name, sequences, length, input_ids.numel(), ids_digest(input_ids), overlap=overlap.to_dict()
    )


def _plan_facts(cached: CachedPlan) -> PlanFacts:
    provenance = cached.plan.provenance.to_dict()
    return PlanFacts(cached.key, cached.sha256, cached.from_cache, provenance["stages"], provenance)


def _peak_memory(device: str) -> Memory:
    """Peaks of the process so far, which in a sweep covers earlier cells too, and of the GPU in this cell."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    on_gpu = torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else None
    return Memory(resident, cuda_bytes=on_gpu)


def _check_finite(record: Record) -> None:
    scores = record.scores
    numbers = [scores.average, scores.perplexity, *(task.value for task in scores.tasks.values())]
    if not all(math.isfinite(number) for number in numbers if number is not None):
        raise UserError(
            f"{record.cell.name}: the model's outputs are not finite in {record.model.dtype}; "
            "try model.dtype=float32"
        )
