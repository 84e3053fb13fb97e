"""Plans on disk, found again by a hash of everything that determines them."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...method.errors import UserError
from ...method.passes.progress import Progress
from ...method.plan import SEAL, PlanError, SparsityPlan
from ...method.stored.plan_parts import SAMPLES
from .. import processes
from ..configuration import digest
from ..locks import held

log = logging.getLogger(__name__)

PROGRESS = ".progress.jsonl"
"""Ending of the file beside a plan in the making, which holds what its search has found so far."""


@dataclass(frozen=True)
class CachedPlan:
    """A plan with where it came from."""

    plan: SparsityPlan
    key: str
    sha256: str
    """SHA-256 of the plan's content without its provenance, which holds timings."""
    from_cache: bool


@dataclass(frozen=True)
class PlanCache:
    """A folder with one plan a key."""

    folder: Path

    def find_or_make(self, identity: dict[str, Any], make: Callable[[Progress], SparsityPlan]) -> CachedPlan:
        """The plan of this identity; `make` is called when it is not there or cannot be read.

        `make` gets what a search for this plan that was cut off has found, and keeps there what it finds.

        Of several jobs that want it one makes it, the others wait; of several processes the main one. What
        `make` raises is passed on and leaves no plan in the cache.
        """
        key = digest(identity)
        folder = self.folder / key[:32]
        if processes.is_main():
            found = _found(key, folder)  # to read it takes no right to write a lock
            if found is None:
                with held(folder):
                    found = _found(key, folder) or _made(key, folder, make)
            processes.wait()
            return found
        processes.wait()
        try:
            return _read(key, folder, from_cache=True)
        except PlanError as error:
            raise UserError(f"{error}; put cache_dir on a disk that all processes share") from error


def _found(key: str, folder: Path) -> CachedPlan | None:
    """The stored plan; None where there is none or it is damaged, which is warned of."""
    if not folder.exists():
        return None
    try:
        return _read(key, folder, from_cache=True)
    except PlanError as error:
        log.warning("the cached plan is damaged and is made again: %s", error)
        return None


def _made(key: str, folder: Path, make: Callable[[Progress], SparsityPlan]) -> CachedPlan:
    progress = Progress(folder.with_name(f"{folder.name}{PROGRESS}"))
    staging = folder.with_name(f"{folder.name}-made")
    try:
        make(progress).save(staging)
    except UserError:  # it would be so again
        progress.forget()
        raise
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
    progress.forget()
    # Read back: a plan from the cache and a fresh one are then the same bytes in every respect.
    return _read(key, folder, from_cache=False)


def _read(key: str, folder: Path, from_cache: bool) -> CachedPlan:
    """Read a plan. Raises PlanError where it is not what was written."""
    return CachedPlan(SparsityPlan.load(folder), key, plan_digest(folder), from_cache)


def plan_digest(folder: Path) -> str:
    """sha256 of what a stored plan does: without its provenance, and the weights that it was made of."""
    hasher = hashlib.sha256((folder / "plan.safetensors").read_bytes())
    document = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    for entry in ("provenance", SAMPLES, SEAL):  # the seal is of the provenance, too
        document.pop(entry, None)
    hasher.update(digest(document).encode())
    return hasher.hexdigest()
