"""What a pass over calibration text has collected, kept in files, so that one that was cut off goes on.

Statistics change with every batch and are written anew. Final states do not: each time those that have come
since are written into a file of their own, which the first file names by its seal.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...kernels.shared_files import make_folder
from ..seal import seal_of
from ..stored.tensor_files import write_tensors

log = logging.getLogger(__name__)

KEEP_AFTER = 60.0
"""Seconds of work that may be lost: what a shorter pass has collected is never written."""
STATES, SEAL = "states", "sha256"
WRITES = 20
"""Writing takes at most a 20th of the time: at 8B a file has three gigabytes."""


class KeptPass:
    """Tensors of a pass and how many batches they are from; without a file nothing is kept.

    STATES grow by rows that never change; all others are written as they are by then.

    A file that was damaged, or that is of another model or text, counts as none. One process at a time may use
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
        self._seals: list[str] = []
        """Seals of the files of states, in order."""
        self._rows = 0
        """Rows in these files."""

    def read(self, of: str) -> dict[str, Tensor]:
        """What an earlier pass of the same model over the same text has kept, in main memory; else nothing.

        of: says the model, the text and its batches.
        """
        if self._file is None or not self._file.exists():
            return {}
        try:
            facts, tensors = _read(self._file)
            if facts["of"] != of:
                raise ValueError("it is of other weights, another text or other batches")
            seals = json.loads(facts["states"])
            parts = [_read(self._part(number), seal)[1][STATES] for number, seal in enumerate(seals)]
        except (OSError, SafetensorError, LookupError, ValueError) as error:
            log.warning("%s cannot be read, the calibration pass begins anew: %s", self._file, error)
            return {}
        self.batches, self.seconds = int(facts["batches"]), float(facts["seconds"])
        self._seals, self._rows = seals, sum(map(len, parts))
        log.info(
            "a calibration pass that was cut off goes on: %d of its batches are in %s", self.batches, self._file
        )
        return tensors | ({STATES: torch.cat(parts)} if parts else {})

    def begin_anew(self) -> None:
        """Take what was read for nothing."""
        self.batches, self.seconds, self._seals, self._rows = 0, 0.0, [], 0

    def is_due(self) -> bool:
        """Whether what was collected since the last time is worth to be written."""
        since = time.perf_counter() - self._written
        return self._file is not None and since >= max(self.after, WRITES * self._seconds_of_write)

    def write(
        self,
        tensors: Mapping[str, Tensor],
        states: Sequence[Tensor],
        batches: int,
        of: str,
        seconds: float,
    ) -> None:
        """Keep what so many batches gave, and the seconds that they took, in place of what was kept before.

        states: all of them, (sequences, ...) each, of which those kept before are not written again.
        """
        if self._file is None:
            return
        begin = time.perf_counter()
        try:
            make_folder(self._file.parent)
            if new := list(_behind(states, self._rows)):
                held = torch.cat([part.detach().cpu() for part in new])
                self._seals.append(self._save(self._part(len(self._seals)), {STATES: held}, {}))
                self._rows += len(held)
            facts = {"batches": str(batches), "of": of, "seconds": repr(seconds)}
            self._save(self._file, tensors, facts | {"states": json.dumps(self._seals)})
        except OSError as error:
            log.warning("%s cannot be written (%s): a pass cut off from now on is not kept", self._file, error)
            self._file = None
            return
        self.batches, self._written = batches, time.perf_counter()
        self._seconds_of_write = self._written - begin

    def forget(self) -> None:
        """Remove the file, and what a write that was cut off left: nothing can be cut off any more."""
        if self._file is not None:
            for file in (self._file, *self._file.parent.glob(f"{self._file.name}-*")):
                file.unlink(missing_ok=True)

    def _part(self, number: int) -> Path:
        """File of some of the states. One that a kill has left without the first file is overwritten."""
        return self._file.with_name(f"{self._file.name}-{STATES}-{number}")

    def _save(self, file: Path, tensors: Mapping[str, Tensor], facts: dict[str, str]) -> str:
        """Write a file, which appears whole or not at all; returns its seal."""
        # One name, not one for each write: gigabytes that a kill leaves are overwritten by the next.
        unfinished = self._file.with_name(f"{self._file.name}-unfinished")
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        seal = seal_of(facts, held)
        write_tensors(held, unfinished, {**facts, SEAL: seal})
        unfinished.replace(file)
        return seal


NOT_KEPT = KeptPass()
"""Where nothing is kept."""


def _read(file: Path, seal: str | None = None) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Facts and tensors of a file. Raises ValueError where they are not what its seal, or this one, is of."""
    with safe_open(file, framework="pt") as kept:
        facts = kept.metadata() or {}
        tensors = {name: kept.get_tensor(name) for name in kept.keys()}  # noqa: SIM118 - no mapping
    own = facts.pop(SEAL, None)
    if own != seal_of(facts, tensors) or seal not in (None, own):
        raise ValueError(f"{file.name} is not what was written")
    return facts, tensors


def _behind(parts: Sequence[Tensor], rows: int) -> Iterator[Tensor]:
    """What follows the first so many rows of all parts."""
    for part in parts:
        if rows < len(part):
            yield part[rows:]
        rows = max(0, rows - len(part))
