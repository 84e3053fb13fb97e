"""Where the results in a folder come from: devices, commits, versions and commands, from the records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...method.errors import UserError
from ..archive import ENDING, stored_files
from ..record import RecordError
from ..records import read_record
from ..tables.text import commit_text, device_text

PACKAGES = ("python", "torch", "triton", "transformers", "lm_eval", "numpy")


@dataclass(frozen=True)
class Provenance:
    """Provenance of the records that one table is made of."""

    name: str
    records: int
    models: list[str]
    devices: list[str]
    commits: list[str]
    versions: list[str]
    dates: str
    hours: float
    commands: list[str]


def read_provenance(results: Path) -> list[Provenance]:
    """One entry a folder or archive of results/records. Raises UserError when a record is damaged."""
    kept = sorted((results / "records").glob("*"))
    groups = {path.name.removesuffix(ENDING): stored_files(path) for path in kept}
    try:
        return [
            _summary(name, [read_record(path.parent) for path in paths])
            for name, paths in groups.items()
            if paths
        ]
    except RecordError as error:
        raise UserError(f"{error}; delete that folder, or make its table again") from error


def _summary(name: str, records: list[dict[str, Any]]) -> Provenance:
    days = sorted(record["utc"][:10] for record in records)
    return Provenance(
        name=name,
        records=len(records),
        models=sorted({record["model"]["name"] for record in records}),
        devices=sorted({device_text(record) for record in records}),
        commits=sorted({commit_text(record).strip("`") for record in records}),
        versions=sorted({_versions(record) for record in records}),
        dates=days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}",
        hours=sum(sum(record["seconds"].values()) for record in records) / 3600,
        commands=sorted({record["command"] for record in records}),
    )


def _versions(record: dict[str, Any]) -> str:
    known = ((package, record["versions"].get(package)) for package in PACKAGES)
    return ", ".join(f"{package} {version}" for package, version in known if version)
