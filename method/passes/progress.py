"""What a search has found so far, kept in a file, so that one that was cut off goes on from there."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from ...kernels.shared_files import make_folder
from .kept_pass import KeptPass

CALIBRATION = ".calibration"
"""Ending of the file beside it that a calibration pass is kept in."""
OF = ("", "of")
"""Stage and key of the line that says what all others are of."""

log = logging.getLogger(__name__)


class Progress:
    """Results of a search's steps by stage and key; without a file nothing is kept.

    Each is one line of JSON, written when it is found. A line that was cut short by a kill, or damaged, ends
    what is read: all behind it is found again. One process at a time may use a file.
    """

    def __init__(self, file: Path | None = None) -> None:
        """Read what an earlier search left in the file, which need not be there."""
        self._file = file
        self.calibration = KeptPass(file and file.with_name(f"{file.name}{CALIBRATION}"))
        """What the pass over the calibration text has collected so far."""
        self._found: dict[tuple[str, str], Any] = {}
        if file is not None and file.exists():
            self._read(file)
        self._of: str | None = None
        """What the file is of, once that is known; it stands in the first line."""

    def begin(self, of: str) -> None:
        """Take what was read for nothing where it is of another search; `of` is a hash of all that decides."""
        kept = self._found.pop(OF, None)
        if self._found and kept != of:
            log.warning("%s is of other weights, another text or another search, which begins anew", self._file)
            self._found = {}
            self._file.unlink()
        self._of = of

    def done(self, stage: str, key: str) -> Any | None:
        """What was kept of a step, None where nothing was."""
        return self._found.get((stage, key))

    def keep(self, stage: str, key: str, value: Any) -> None:
        """Keep what a step found: plain data as JSON holds it. Floats come back with every bit."""
        if self._file is None:
            return
        self._found[stage, key] = value
        try:
            make_folder(self._file.parent)
            with self._file.open("a", encoding="utf-8") as lines:
                if self._of is not None and not lines.tell():
                    lines.write(_line([*OF, self._of]))
                lines.write(_line([stage, key, value]))
        except OSError as error:
            folder, why = self._file.parent, error.strerror
            log.warning("%s cannot be written (%s): a search cut off from now on is not kept", folder, why)
            self._file = None

    def forget(self) -> None:
        """Remove the files: the search has come to its end."""
        self.calibration.forget()
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _read(self, file: Path) -> None:
        whole = 0
        for line in file.read_bytes().splitlines(keepends=True):
            try:
                stage, key, value = json.loads(line[: -DIGEST - 2])
            except ValueError:
                break
            if line.decode(errors="replace") != _line([stage, key, value]):
                break
            self._found[stage, key] = value
            whole += len(line)
        with file.open("r+b") as lines:
            lines.truncate(whole)
        if self._found:
            log.info("a search that was cut off goes on: %d of its steps are in %s", len(self._found), file)


DIGEST = 16
"""Characters of a line's checksum."""


def _line(entry: list[Any]) -> str:
    text = json.dumps(entry)
    return f"{text} {hashlib.sha256(text.encode()).hexdigest()[:DIGEST]}\n"
