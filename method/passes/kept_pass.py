"""What a pass over calibration text has collected, kept in a file, so that one that was cut off goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...kernels.shared_files import file_mode, make_folder
from ..seal import seal_of

log = logging.getLogger(__name__)

KEEP_AFTER = 60.0
"""Seconds of work that may be lost: what a shorter pass has collected is never written."""
WRITES = 20
"""Writing takes at most a 20th of the time: at 8B a file has three gigabytes."""


class KeptPass:
    """Tensors of a pass and how many batches they are from; without a file nothing is kept.

    A file that was damaged, or that holds less than is asked for, counts as none. One process at a time may use
    it.
    """

    def __init__(self, file: Path | None = None, after: float = KEEP_AFTER) -> None:
        self.after = after
        """Seconds of work that are worth to be written."""
        self._file = file
        self._seconds_of_write = 0.0
        self._written = time.perf_counter()
        self.batches = 0
        """Batches in the file."""
        self.seconds = 0.0
        """Seconds that an earlier process took for what was read."""

    def read(self, batch_size: int) -> dict[str, Tensor]:
        """What an earlier pass in batches of this size has kept, in main memory; empty where there is none."""
        if self._file is None or not self._file.exists():
            return {}
        try:
            with safe_open(self._file, framework="pt") as kept:
                facts = kept.metadata() or {}
                tensors = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError) as error:
            log.warning("%s cannot be read, the calibration pass begins anew: %s", self._file, error)
            return {}
        if facts.get("sha256") != _seal(tensors, facts):
            log.warning("%s is damaged, the calibration pass begins anew", self._file)
            return {}
        if int(facts["batch_size"]) != batch_size:
            return {}
        self.batches, self.seconds = int(facts["batches"]), float(facts["seconds"])
        log.info(
            "a calibration pass that was cut off goes on: %d of its batches are in %s", self.batches, self._file
        )
        return tensors

    def is_due(self) -> bool:
        """Whether what was collected since the last time is worth to be written."""
        since = time.perf_counter() - self._written
        return self._file is not None and since >= max(self.after, WRITES * self._seconds_of_write)

    def write(self, tensors: Mapping[str, Tensor], batches: int, batch_size: int, seconds: float) -> None:
        """Keep what so many batches gave, and the seconds that they took, in place of what was kept before."""
        if self._file is None:
            return
        begin = time.perf_counter()
        facts = {"batches": str(batches), "batch_size": str(batch_size), "seconds": repr(seconds)}
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            make_folder(self._file.parent)
            save_file(held, self._unfinished, facts | {"sha256": _seal(held, facts)})
            self._unfinished.chmod(file_mode(self._file.parent))  # safetensors lets nobody else read its files
            self._unfinished.replace(self._file)
        except (OSError, SafetensorError) as error:
            log.warning("%s cannot be written (%s): a pass cut off from now on is not kept", self._file, error)
            self._file = None
            return
        self.batches, self._written = batches, time.perf_counter()
        self._seconds_of_write = self._written - begin

    def forget(self) -> None:
        """Remove the file, and what a write that was cut off left: nothing can be cut off any more."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._unfinished.unlink(missing_ok=True)

    @property
    def _unfinished(self) -> Path:
        # One name, not one for each write: gigabytes that a kill leaves are overwritten by the next.
        return self._file.with_name(f"{self._file.name}-unfinished")


NOT_KEPT = KeptPass()
"""Where nothing is kept."""


def _seal(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    return seal_of({name: fact for name, fact in facts.items() if name != "sha256"}, tensors)
