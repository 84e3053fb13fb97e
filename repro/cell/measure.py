"""One cell measured: model → calibration → plan → evaluation and speed → record."""

from __future__ import annotations

import logging
import math
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...method.errors import UserError
from ...method.quantised_model import QuantisedWeights, quantised, relative_error
from ...method.running.apply import applied
from .. import processes
from ..configuration import digest, portable
from ..models.checkpoint import LoadedModel, load_model
from ..models.weights import ATTENTION
from ..record import SCHEMA, Record, RecordError, UnfinishedError
from ..record_sections import (
    CalibrationFacts,
    CellName,
    Configured,
    HeadFacts,
    Latency,
    Memory,
    ModelFacts,
    PlanFacts,
    ProtocolFacts,
    QuantisationFacts,
    Realised,
    Scores,
)
from ..records import (
    EVALUATED,
    load_items,
    load_record,
    save_begun,
    save_evaluated,
    save_record,
    sealed,
    surroundings,
)
from ..text.overlap import Overlap, checked_overlap
from ..typed_json import decoded
from .plan_cache import CachedPlan
from .planning import Planner, ids_digest, set_seeds

if TYPE_CHECKING:
    from .cell import Cell

log = logging.getLogger(__name__)


def measure(cell: Cell) -> dict[str, Any]:
    """Compute one cell and write its record and items into the cell's folder; returns the record.

    What the suite or the speed would refuse is refused before any plan is made. The accuracy is written
    before the speed is measured; a cell that has it already goes on from there. Of several processes the main
    one writes. Raises UnfinishedError where the speed cannot be measured.
    """
    seconds: dict[str, float] = {}
    if cell.checkpoint.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    with _timed(seconds, "load"):
        loaded = load_model(cell.checkpoint)
    cell.suite.check(loaded.model, loaded.tokenizer)
    cell.quantisation.check_model(loaded.model)
    cell.heads.check_model(loaded.model)
    mechanisms = cell.heads.mechanisms | cell.method.mechanisms_at(cell.sparsity)
    cell.latency.check(loaded.model, mechanisms, cell.quantisation.formats)
    input_ids = cell.calibration.input_ids(loaded.tokenizer)
    _check_length(input_ids, loaded.model.config.max_position_embeddings)
    overlap = checked_overlap(input_ids, loaded.tokenizer, cell.suite.texts(), cell.config.largest_overlap)
    calibration = _calibration_facts(cell.calibration.name, input_ids, overlap)
    planner = Planner(
        cell.config,
        cell.method,
        cell.protocol,
        cell.quantisation,
        cell.heads,
        cell.calibration.batch_size,
        loaded,
        input_ids,
    )
    facts, weights = {"model": _model_facts(loaded), "calibration": calibration}, None
    if cell.quantisation.name != "none":
        with _timed(seconds, "quantisation"):
            weights = planner.weights()
        facts["quantisation"] = _quantisation_facts(cell, loaded, weights)
    with quantised(loaded.model, weights):
        return _planned_and_evaluated(cell, loaded, planner, facts, seconds)


def _planned_and_evaluated(
    cell: Cell, loaded: LoadedModel, planner: Planner, facts: dict[str, Any], seconds: dict[str, float]
) -> dict[str, Any]:
    """Make the plan and measure under it; `facts` are sections of the record that are known."""
    with _timed(seconds, "plan"):
        cached = planner.plan(cell.sparsity)
    record = processes.of_main(lambda: _evaluated_before(cell, cached))
    if record is None:
        record = _evaluated(cell, loaded, cached, facts, seconds)

    def with_speed(latency: dict[str, Any] | None) -> dict[str, Any]:
        measured = None if latency is None else decoded(Latency, latency)
        return replace(record, latency=measured, memory=_peak_memory(cell.checkpoint.device)).to_json()

    def keep(begun: dict[str, Any]) -> None:
        if processes.is_main():
            save_begun(cell.folder, with_speed(begun))

    try:
        with _timed(seconds, "latency"):
            latency = cell.latency.measure(
                loaded.model, cached.plan, lambda other: planner.plan(other).plan, keep
            )
    except Exception as error:
        raise UnfinishedError(
            f"{cell.name}: the accuracy is measured and kept, the speed is not "
            f"({' '.join(str(error).split())[:300]}); the same command measures only that"
        ) from error
    record = replace(record, seconds=record.seconds | {"latency": seconds["latency"]})
    content = sealed(with_speed(latency))
    if processes.is_main():
        save_record(cell.folder, content, load_items(cell.folder))
    return content


def _evaluated_before(cell: Cell, cached: CachedPlan) -> Record | None:
    """The record of an evaluation that this very plan went through, when its speed could not be measured."""
    if cell.config.force or not (cell.folder / EVALUATED).exists():
        return None
    try:
        record = Record.from_json(load_record(cell.folder, EVALUATED))
    except RecordError as error:
        log.warning("the accuracy is measured again: %s", error)
        return None
    return record if record.plan.sha256 == cached.sha256 else None


def _evaluated(
    cell: Cell,
    loaded: LoadedModel,
    cached: CachedPlan,
    facts: dict[str, Any],
    seconds: dict[str, float],
) -> Record:
    """Run the suite under the plan, and write all of the record but the speed."""
    config = cell.config
    if cell.heads.name != "none":
        facts = {**facts, "heads": _head_facts(cell, cached)}
    set_seeds(config.seed)
    counting = processes.SharedTrafficCounter
    with _timed(seconds, "evaluation"), applied(loaded.model, cached.plan, cell.protocol, counting) as session:
        evaluation = cell.suite.run(loaded.model, loaded.tokenizer, session)
        realised = session.report()
    loaded.check_weights()
    items = evaluation.items_to_dict()
    record = Record(
        schema=SCHEMA,
        cell=CellName(cell.name, cell.key),
        **facts,
        method=Configured(cell.method.name, portable(config.method)),
        protocol=ProtocolFacts(cell.protocol.name, cell.protocol.describe()),
        suite=Configured(cell.suite.name, portable(config.suite)),
        sparsity=cell.sparsity,
        realised=decoded(Realised, realised),
        scores=decoded(Scores, evaluation.to_dict()),
        latency=None,
        plan=_plan_facts(cached),
        seconds=dict(seconds),
        memory=_peak_memory(cell.checkpoint.device),
        seed=config.seed,
        surroundings=surroundings(),
        config=portable(config),
        items_sha256=digest(items),
    )
    _check_finite(record)
    if processes.is_main():
        save_evaluated(cell.folder, record.to_json(), items)
    return record


def _check_length(input_ids: Tensor, longest: int) -> None:
    if input_ids.shape[1] > longest:
        raise UserError(f"calibration.length={input_ids.shape[1]}: this model takes up to {longest} tokens")


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


def _quantisation_facts(cell: Cell, loaded: LoadedModel, weights: QuantisedWeights) -> QuantisationFacts:
    stored = sum(weight.stored_bytes().total for weight in weights.weights.values())
    count = sum(math.prod(weight.shape) for weight in weights.weights.values())
    return QuantisationFacts(
        cell.quantisation.name,
        portable(cell.config.quantisation),
        weights.description,
        stored,
        bits_per_weight=8 * stored / count,
        relative_error=relative_error(loaded.model, weights),
    )


def _head_facts(cell: Cell, cached: CachedPlan) -> HeadFacts:
    found = cached.plan.provenance.details["heads"]
    return HeadFacts(
        cell.heads.name, portable(cell.config.heads), found["groups"], found["kept"], found["dense_blocks"]
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
