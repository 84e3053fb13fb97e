"""A cell that takes seconds, started in this process."""

import json

import pytest
from wisparse.repro.record import Record

CELL = [
    "model=llama-mini", "model.device=cpu", "model.dtype=float32", "suite=heldout", "suite.documents=1",
    "search=minimal", "calibration.sequences=2", "calibration.length=64", "logger=none", "reference=false",
]  # fmt: skip


@pytest.fixture
def cell(start):
    """Run such a cell; returns its record, which reads and writes the same, and the text above it."""

    def cell(*overrides: str) -> tuple[dict, str]:
        code, out, _ = start(*CELL, *overrides)
        assert code == 0
        record = json.loads(out[-1])
        assert Record.from_json(record).to_json() == record
        return record, " ".join(out[:-1])

    return cell
