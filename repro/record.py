"""The record of a cell as one type, of the sections in `record_sections`; `records` keeps it on disk."""

from __future__ import annotations

from dataclasses import dataclass, field, is_dataclass
from typing import Any, get_origin, get_type_hints

from .record_facts import hardware, has_random_weights, is_embedded
from .record_sections import (
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
    Surroundings,
)
from .typed_json import INLINE, LATER, MisfitError, decoded, encoded, required

SCHEMA = 1


class RecordError(Exception):
    """A stored record cannot be read or is incomplete."""


class UnfinishedError(Exception):
    """The accuracy of a cell is measured and kept, and its speed could not be measured."""


@dataclass(frozen=True)
class Record:
    """Everything about one cell."""

    schema: int
    cell: CellName
    model: ModelFacts
    method: Configured
    protocol: ProtocolFacts
    quantisation: QuantisationFacts | None = field(default=None, kw_only=True, metadata=LATER)
    """None: the model's own weights, as in all records of before weights could be quantised."""
    heads: HeadFacts | None = field(default=None, kw_only=True, metadata=LATER)
    """None: attention looked at all heads."""
    calibration: CalibrationFacts
    suite: Configured
    sparsity: float
    realised: Realised
    scores: Scores = field(metadata=INLINE)
    latency: Latency | None
    plan: PlanFacts
    seconds: dict[str, float]
    """Seconds by part: load, plan, evaluation, and latency since speed can be measured."""
    memory: Memory
    seed: int
    surroundings: Surroundings = field(metadata=INLINE)
    config: dict[str, Any]
    items_sha256: str
    content_sha256: str | None = field(default=None, kw_only=True, metadata=LATER)
    """Hash of all other content, as the file was written; see `sealed`."""

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Record:
        """Read a record of schema 1; raises RecordError that names what is unknown, lacking or misplaced."""
        if content.get("schema") != SCHEMA:
            raise RecordError(f"the record has schema {content.get('schema')}, expected {SCHEMA}")
        try:
            return decoded(cls, {"latency": None} | content)
        except MisfitError as error:
            raise RecordError(f"the record is damaged or of another version: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """Give the JSON-able form back, section by section as it was read."""
        content = encoded(self)
        if self.latency is None and "latency" not in self.seconds:
            del content["latency"]  # a record of before speed could be measured
        return content

    @property
    def embedded(self) -> bool:
        """Whether the model is one of those in this repository."""
        return is_embedded(self.config)

    @property
    def random_weights(self) -> bool:
        """Whether the weights are random: the scores say nothing then, the costs do."""
        return has_random_weights(self.config)

    @property
    def hardware(self) -> str:
        """Device that the cell ran on; see `hardware`."""
        return hardware(vars(self.model))

    @property
    def commit(self) -> str:
        """Commit of the sources; empty outside of a checkout."""
        return self.surroundings.git.commit if self.surroundings.git else ""


OBJECTS = frozenset(
    name for name, kind in get_type_hints(Record).items() if is_dataclass(kind) or get_origin(kind) is dict
)
"""Sections that are objects, where they are there."""
SECTIONS = required(Record) - {"latency"}
"""Sections of every record; a file without one of them is no finished record."""
