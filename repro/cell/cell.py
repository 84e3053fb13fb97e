"""One cell of a table: its checked configuration, the key that it is found again by, and its folder."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ...method.errors import OutOfReachError
from .. import processes
from ..configuration import digest, files_digests, portable
from ..models.checkpoint import Checkpoint, find_checkpoint
from ..record import SCHEMA, RecordError
from ..records import RECORD, load_record, surroundings
from ..text.overlap import check_recorded
from ..typed_json import encoded
from .identity import sources_digest, targets
from .planning import model_identity

log = logging.getLogger(__name__)

MEASURE = "wisparse.repro.cell.measure"
"""Module whose code every cell depends on, with that of its own objects."""

PARTS = ("method", "protocol", "quantisation", "heads", "calibration", "suite", "latency")
"""Configuration groups that are built into objects."""


@dataclass(frozen=True)
class Cell:
    """A checked configuration: what is to be measured, and the folder its record belongs in."""

    config: DictConfig
    checkpoint: Checkpoint
    method: Any
    protocol: Any
    quantisation: Any
    heads: Any
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
    sparsity = float(config.sparsity)
    parts = {name: instantiate(config[name]) for name in PARTS}
    method = parts["method"]
    if method.name == "dense":
        sparsity = 0.0  # one dense cell serves all sparsities
    processes.check(config.model.device, config.latency.name)
    _check_quantised(parts)
    parts["heads"].check_method(method.mechanisms)
    checkpoint = find_checkpoint(OmegaConf.to_container(config.model, resolve=True))
    settings = {name: portable(config[name]) for name in PARTS}
    identity = {
        **settings,
        "sparsity": sparsity,
        "seed": config.seed,
        "search_tokens": config.search.sparse_tokens,
        "model": model_identity(checkpoint),
        "files": _named_files(config) | files_digests(*parts.values()),
        "sources": sources_digest({MEASURE, *targets(settings)}),
    }
    bits = "" if parts["quantisation"].name == "none" else f"-{parts['quantisation'].name}"
    heads = "" if parts["heads"].name == "none" else f"-{parts['heads'].name}-{parts['heads'].density:g}"
    name = f"{checkpoint.name.replace('/', '_')}-{method.name}-{sparsity:g}{bits}{heads}"
    return Cell(config, checkpoint, **parts, sparsity=sparsity, name=name, key=digest(identity))


def _check_quantised(parts: dict[str, Any]) -> None:
    """Raises UserError for what cannot be measured with quantised weights."""
    quantisation = parts["quantisation"]
    quantisation.check_method(parts["method"].mechanisms)
    quantisation.check_activations(dense=parts["method"].name == "dense" and parts["heads"].name == "none")


def finished_record(cell: Cell) -> dict[str, Any] | None:
    """The record of a finished cell, or None when it is to be computed; a damaged record is warned of.

    A record that names baselines which were still to be timed is of a cell that was cut off there.

    Raises UserError where its tasks share more with the calibration text than is allowed now.
    """
    if cell.config.force or not (cell.folder / RECORD).exists():
        return None
    try:
        record = load_record(cell.folder)
    except RecordError as error:
        log.warning("the stored record is damaged and the cell is computed again: %s", error)
        return None
    if (record["latency"] or {}).get("unmeasured"):
        return None
    check_recorded(record["calibration"].get("overlap"), cell.config.largest_overlap)
    return record


def unreachable_note(cell: Cell, error: OutOfReachError) -> dict[str, Any]:
    """Note in a table on a cell that its method cannot reach."""
    return {
        "schema": SCHEMA,
        "cell": {"name": cell.name, "key": cell.key},
        "model": {"name": cell.checkpoint.name, "fingerprint": cell.checkpoint.fingerprint},
        "method": {"name": cell.method.name},
        "sparsity": cell.sparsity,
        "maximum": error.maximum,
        "reason": str(error),
        **encoded(surroundings()),
    }


def _named_files(config: DictConfig) -> dict[str, str]:
    """sha256 of every file that the suite or the calibration names: its content counts, not its name."""
    named = {}
    for part in ("suite", "calibration"):
        for key, value in config[part].items():
            if isinstance(value, str) and not key.startswith("_") and Path(value).expanduser().is_file():
                named[f"{part}.{key}"] = hashlib.sha256(Path(value).expanduser().read_bytes()).hexdigest()
    return named


def record_line(record: dict[str, Any]) -> str:
    """The record as one line of JSON."""
    return json.dumps(record, separators=(",", ":"), allow_nan=False)
