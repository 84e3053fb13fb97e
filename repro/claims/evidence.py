"""Evidence that claims are held against: records at full size, and the tables of the embedded models."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from ..configuration import CONFIGURATION
from ..embedded.names import EMBEDDED
from ..measured.cells import MeasuredCell, every_cell
from ..measured.comparable import check_comparable
from ..record_facts import has_random_weights
from ..tables.csv_rows import Row, read_rows
from ..tables.table_data import TableData
from .printed import Claim


class Evidence:
    """The results in a folder: records/, and the tables beside it."""

    def __init__(self, results: Path) -> None:
        self.results = results

    @cached_property
    def cells(self) -> list[MeasuredCell]:
        """Records of trained models other than the embedded ones, the newest first.

        Raises UserError when one is damaged.
        """

        def decides(record: dict[str, Any]) -> bool:
            # Random weights tell costs, never accuracy.
            config = record["config"]
            return config["model"]["name"] not in EMBEDDED and not has_random_weights(config)

        return sorted(
            every_cell([self.results / "records"], decides), key=lambda cell: cell.record["utc"], reverse=True
        )

    def accuracy(self, claim: Claim, model: str, method: str, sparsity: float) -> MeasuredCell | str:
        """The newest complete measurement under the claim's own conditions, or why there is none."""
        if absent := self._not_here(model, method):
            return absent
        suite = claim.section["suite"]
        key = (model, method, 0.0 if method == "dense" else sparsity)
        cells = [cell for cell in self.cells if cell.key == key and cell.record["suite"]["name"] == suite]
        if not cells:
            return f"no result of {model} under suite={suite}"
        objections = [_objection(claim, cell) for cell in cells]
        return cells[objections.index("")] if "" in objections else objections[0]

    @staticmethod
    def _not_here(model: str, method: str) -> str:
        """Why no command measures it: the model or the method has no configuration."""
        for group, choice in (("method", method), ("model", model)):
            if not (CONFIGURATION / group / f"{choice}.yaml").is_file():
                return f"there is no {group}={choice} here"
        return ""

    def speeds(self, claim: Claim, models: frozenset[str] | tuple[str, ...]) -> list[Row]:
        """Rows of speed.csv at the claim's method, sparsity, setting and baseline."""
        setting = {name: str(value) for name, value in claim.section["setting"].items()}
        return [
            row
            for row in self.table("speed")
            if row["model"] in models
            and row["method"] == claim.method
            and float(row["sparsity"]) == claim.sparsity
            and row["baseline"] == claim.section["baseline"]
            and all(row[name] == value for name, value in setting.items())
        ]

    def embedded_rows(self, table: str, method: str, sparsity: float) -> dict[str, Row]:
        """Measured row of table1.csv or table2.csv, by embedded model."""
        return {
            row["model"]: row
            for row in self.table(table)
            if row["model"] in EMBEDDED
            and row["method"] == method
            and float(row["sparsity"]) == sparsity
            and row["status"] == "measured"
        }

    def table(self, name: str) -> list[Row]:
        """Rows of NAME.csv; none where there is no such file."""
        return read_rows(self.results / f"{name}.csv")


def _objection(claim: Claim, cell: MeasuredCell) -> str:
    """Why a record does not decide the claim; empty when it does."""
    config = cell.record["config"]
    if config["suite"].get("limit") is not None:
        return f"measured on {config['suite']['limit']} items of each task only"
    missing = sorted(set(claim.section.get("columns", [])) - cell.record["tasks"].keys())
    if missing:
        return f"measured without {', '.join(missing)}"
    if cell.key[1] == "dense":
        return ""
    for group, allowed in claim.section["requires"].items():
        found = config[group]["name"] if isinstance(config[group], dict) else config[group]
        if found not in allowed:
            return f"measured with {group}={found}; the claim needs {' or '.join(map(str, allowed))}"
    return ""


def paired(cells: list[MeasuredCell]) -> TableData:
    """Cells of one model for comparisons by item. Raises UserError when they do not belong together."""
    check_comparable(cells)
    return TableData({cell.key: cell for cell in cells})
