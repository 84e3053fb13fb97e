"""Outcomes of the cells of one command, of which there is one without -m."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from ...kernels.shared_files import make_folder, release, taken
from ...method.errors import UserError
from ..locks import ENDING
from .job import FAILED, FAILURE, FINISHED, OUT_OF_REACH, Outcome, outcomes_folder, outcomes_folders


class Announcement(Callback):
    """Note of what Hydra is about to start: it builds this and tells it, in the process started by hand."""

    latest: ClassVar[Announcement | None] = None
    command: ClassVar[str] = ""
    """Folder of the outcomes of the command that runs, below the experiment's."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """A single cell."""
        self._keep(config, Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """A sweep."""
        self._keep(config, Path(config.hydra.sweep.dir))
        print(f"{_number_of_cells(self._overrides())}; finished ones are kept", file=sys.stderr, flush=True)

    def _keep(self, config: DictConfig, folder: Path) -> None:
        self._config, self.folder = config, folder
        with contextlib.suppress(OSError, UserError):  # said in one line by whoever has to write there
            make_folder(folder)  # Hydra's own would be closed to those who share what it lies in
            _show_life(outcomes_folder(folder, self.command))
        self._config_loader = GlobalHydra.instance().config_loader()
        self._submitted_before = self._submitted()
        Announcement.latest = self

    def cells(self) -> list[str]:
        """Every cell by the overrides that tell it from the others, in the order of the jobs' numbers."""
        if self.is_single:
            return [""]
        cells = self._overrides()
        varied = [place for place, values in enumerate(zip(*cells, strict=True)) if len(set(values)) > 1]
        return [" ".join(cell[place] for place in varied) or " ".join(cell) for cell in cells]

    def _overrides(self) -> list[list[str]]:
        """Overrides of every job of the sweep, in the order of the jobs' numbers."""
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
        from hydra.core.override_parser.overrides_parser import OverridesParser

        # As they were written: what ${…} in them stands for is a matter of the cell.
        hydra = OmegaConf.to_container(self._config.hydra)
        swept = [f"{name}={values}" for name, values in (hydra["sweeper"]["params"] or {}).items()]
        parser = OverridesParser.create(config_loader=self._config_loader)
        overrides = parser.parse_overrides([*swept, *hydra["overrides"]["task"]])
        (jobs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
        return jobs

    @property
    def is_single(self) -> bool:
        """Whether one cell is asked for, not a sweep."""
        return self._config.hydra.mode != RunMode.MULTIRUN

    def wait_for_cluster(self) -> None:
        """Wait for the jobs in Slurm: submitit gives up at the first that was killed, and the others go on."""
        if names := sorted(self._submitted() - self._submitted_before):
            from submitit import SlurmJob

            for name in names:
                SlurmJob(self._slurm_folder / name, job_id=name).wait()

    def why_no_outcome(self) -> str:
        """Reason, as far as it is known, why a job did not say how it ended."""
        known = f"; its log is in {self._slurm_folder}" if self._in_slurm else ""
        return f"its job ended without a result: killed, or out of time or memory{known}"

    @property
    def _in_slurm(self) -> bool:
        return self._config.hydra.runtime.choices["hydra/launcher"] == "submitit_slurm"

    @property
    def _slurm_folder(self) -> Path:
        """Where submitit keeps a folder for each job, with its log."""
        return Path(self._config.hydra.launcher.submitit_folder).parent

    def _submitted(self) -> set[str]:
        if not self._in_slurm:
            return set()
        return {path.parent.name for path in self._slurm_folder.glob("*/*_submitted.pkl")}


def _number_of_cells(overrides: list[list[str]]) -> str:
    """How many cells the jobs of a sweep are of: the dense model has one for all sparsities.

    overrides: of every job.
    """
    jobs, cells = len(overrides), len({frozenset(_of_cell(job)) for job in overrides})
    counted = f"{cells} cell{'s' if cells > 1 else ''}"
    return counted if jobs == cells else f"{counted} in {jobs} jobs: the dense model has one for all sparsities"


def _of_cell(job: list[str]) -> list[str]:
    return [one for one in job if "method=dense" not in job or not one.startswith("sparsity=")]


def finish(outcomes: str, error: Outcome | None) -> int:
    """Report on stderr what did not finish when Hydra has ended; returns the exit code.

    outcomes: folder of the jobs' outcomes, below the experiment's; error: what ended Hydra early, if anything.
    """
    announcement = Announcement.latest
    if error is not None:
        print(f"{error.status}: {error.line}", file=sys.stderr)
        if announcement is not None:
            announcement.wait_for_cluster()
    code = 0 if error is None else error.exit_code
    # What ended a single cell early is said already; of a sweep's jobs each has its own end.
    single = error is not None and (announcement is None or announcement.is_single)
    found = [] if single else _collected(announcement, outcomes)
    forget(outcomes)
    return _summarize(found) or code


def _collected(announcement: Announcement | None, outcomes: str) -> list[Outcome]:
    """How every job ended, and that it was killed where it did not say; none where no job was started."""
    folders = [] if announcement is None else outcomes_folders(announcement.folder, outcomes)
    if not any(folder.exists() for folder in folders):
        return []
    found = []
    for number, cell in enumerate(announcement.cells()):
        paths = [path for folder in folders if (path := folder / f"{number}.json").exists()]
        if paths:
            found.append(Outcome(**json.loads(paths[0].read_text(encoding="utf-8"))))
        else:
            # The cell is part of the line: of killed jobs each is named, as each has a log of its own.
            found.append(Outcome(FAILED, f"{cell}: {announcement.why_no_outcome()}", FAILURE))
    return found


def _show_life(own: Path) -> None:
    """Lock a file beside this command's outcomes for its life; remove what killed commands left."""
    taken(_sign_of_life(own))
    for folder in own.parent.iterdir():
        if folder.suffix != ENDING and (left := taken(_sign_of_life(folder))) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            release(_sign_of_life(folder), left)


def _sign_of_life(outcomes: Path) -> Path:
    return outcomes.with_name(f"{outcomes.name}{ENDING}")


def forget(outcomes: str) -> None:
    """Remove what the jobs, and Hydra, left beside their records."""
    if Announcement.latest is None:
        return
    for folder in outcomes_folders(Announcement.latest.folder, outcomes):
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # not there, or not empty while another command runs
            _sign_of_life(folder).unlink(missing_ok=True)
            folder.parent.rmdir()
    with contextlib.suppress(OSError):
        (Announcement.latest.folder / "multirun.yaml").unlink(missing_ok=True)


def _summarize(outcomes: list[Outcome]) -> int:
    number = Counter(outcome.status for outcome in outcomes)
    for status in (OUT_OF_REACH, FAILED):
        for line in _lines([outcome for outcome in outcomes if outcome.status == status]):
            print(f"{status}: {line}", file=sys.stderr)
    if number[OUT_OF_REACH] or (number[FAILED] and len(outcomes) > 1):
        print(
            f"{number[FINISHED]} finished, {number[OUT_OF_REACH]} out of reach, {number[FAILED]} failed",
            file=sys.stderr,
        )
    return min((outcome.exit_code for outcome in outcomes if outcome.status == FAILED), default=0)


def _lines(outcomes: list[Outcome]) -> list[str]:
    """One line a reason: what keeps many cells from finishing, as a model that is not here, is said once."""
    cells: dict[str, list[str]] = {}
    for outcome in outcomes:
        cells.setdefault(outcome.line, []).append(outcome.cell)
    lines = []
    for line, (first, *others) in cells.items():
        where = f"{first} and {len(others)} more" if others else first
        lines.append(f"{where}: {line}" if where else line)
    return lines
