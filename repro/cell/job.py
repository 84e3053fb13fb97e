"""A job computes one cell, in the process of the command or in one that a launcher starts, maybe elsewhere.

Whatever happens it leaves a file that says how it ended: that is all a sweep knows of jobs in other processes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import traceback
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from ...method.errors import OutOfReachError, UserError
from ..configuration import register_resolvers, user_mistake
from ..record import UnfinishedError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from .cell import Cell

log = logging.getLogger("wisparse")

USER_MISTAKE, FAILURE = 2, 1
FINISHED, OUT_OF_REACH, FAILED = "finished", "out of reach", "error"
OUTCOMES = ".outcomes"


@dataclass(frozen=True)
class Outcome:
    """How a job ended; `line` and `exit_code` say why its cell is not finished."""

    status: str
    line: str = ""
    exit_code: int = 0
    cell: str = ""
    """Which cell of a sweep; a single run needs no name."""


class CellJob:
    """The function that Hydra calls with the configuration of each cell; it is pickled for other processes."""

    def __init__(self) -> None:
        self.outcomes = f"{OUTCOMES}/{uuid.uuid4().hex[:12]}"
        """Folder of the outcomes of this command, below the experiment's."""
        self._arguments = list(sys.argv)
        self._started_in = os.getpid()

    def run(self, config: DictConfig) -> None:
        """Compute the cell, or take it from its record; print its table and, into a pipe, the record."""
        from ...kernels.shared_files import make_folder
        from .. import processes

        prepare_process()
        sys.argv = self._arguments  # a record names the command that was typed, not a launcher's own
        if processes.is_main():
            # Now it is known that a job has started.
            make_folder(outcomes_folder(self._experiment, self.outcomes))
        # Whatever a library prints while the cell is computed belongs on stderr: stdout ends with the record.
        with contextlib.redirect_stdout(sys.stderr):
            record, dense, outcome = self._attempt(config)
        if not processes.is_main():
            return
        if record is not None:
            from .cell import record_line
            from .console import print_record

            print_record(record, dense)
            if not sys.stdout.isatty():  # a person would scroll through 20 kB of it
                print(record_line(record), flush=True)
        elif os.getpid() != self._started_in:  # for the job's own log
            print(f"{outcome.status}: {outcome.cell}: {outcome.line}", file=sys.stderr, flush=True)
        self._leave(outcome)

    def _attempt(self, config: DictConfig) -> tuple[dict[str, Any] | None, dict[str, Any] | None, Outcome]:
        """The record of the cell and, of a single run, the dense model's; None for what there is not."""
        from .. import processes
        from .cell import prepare
        from .settings import check_names, check_settings

        cell, debug = None, config.debug is True  # anything else is refused below
        try:
            _check_launcher()
            check_settings(config)
            check_names(config, HydraConfig.get().runtime.choices)
            logger = _instantiate(config.logger)
            cell = prepare(config)
            record, fresh = _finished_or_measured(cell, logger)
            dense = None if _is_sweep() else _dense_record(cell, record, fresh, debug)
            return record, dense, Outcome(FINISHED)
        except Exception as error:
            # Kept, not raised: Hydra would end the sweep, and print its own account of the error.
            if not isinstance(error, processes.OtherProcessError):
                processes.announce(f"{type(error).__name__}: {error}")
            if isinstance(error, OutOfReachError) and _is_sweep():
                _note_unreachable(cell, error)
                return None, None, Outcome(OUT_OF_REACH, str(error), cell=cell.name)
            code, line = failure(error, debug)
            return None, None, Outcome(FAILED, line, code, _where(cell))

    def _leave(self, outcome: Outcome) -> None:
        from ..records import write_json

        number = HydraConfig.get().job.num if _is_sweep() else 0
        try:
            write_json(outcomes_folder(self._experiment, self.outcomes) / f"{number}.json", asdict(outcome))
        except OSError:  # that a disk is full has to be said somewhere
            write_json(elsewhere(self.outcomes) / f"{number}.json", asdict(outcome))

    @property
    def _experiment(self) -> Path:
        hydra = HydraConfig.get()
        return Path(hydra.sweep.dir if _is_sweep() else hydra.run.dir)


def _number() -> str:
    """Number of the job in its sweep, from 1; nothing for a single one."""
    return f"job {HydraConfig.get().job.num + 1}: " if _is_sweep() else ""


def outcomes_folder(experiment: Path, outcomes: str) -> Path:
    """Where the jobs of a command leave how they ended: below the experiment.

    What another user has finished there can be read without the right to write: then in the temporary folder.
    """
    there = next(folder for folder in (experiment, *experiment.parents) if folder.exists())
    writable = os.access(there, os.W_OK, effective_ids=True)
    return experiment / outcomes if writable else elsewhere(outcomes)


def outcomes_folders(experiment: Path, outcomes: str) -> list[Path]:
    """All places where outcomes of a command can be."""
    return [experiment / outcomes, elsewhere(outcomes)]


def elsewhere(outcomes: str) -> Path:
    """Where a command's outcomes are left if the experiment's folder does not take them."""
    return Path(tempfile.gettempdir()) / outcomes


def prepare_process() -> None:
    """Prepare a process for its first cell, whoever started it."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("torch.utils.cpp_extension").addFilter(_says_more_than_no_gpu)
    log.setLevel(logging.INFO)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    register_resolvers()


def _says_more_than_no_gpu(entry: logging.LogRecord) -> bool:
    """All that torch says when it looks for a compiler, but that a machine with CUDA's files has no GPU."""
    return not str(entry.msg).startswith("No CUDA runtime is found")


def failure(error: BaseException, debug: bool) -> tuple[int, str]:
    """Exit code and one line for an exception; with `debug`, its traceback on stderr too."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, UnfinishedError):
        return FAILURE, str(error)
    mistake = user_mistake(error)
    if mistake is not None:
        return USER_MISTAKE, mistake
    brief = " ".join(str(error).split())[:300]
    return FAILURE, f"{type(error).__name__}: {brief} (debug=true shows where)"


def _check_launcher() -> None:
    launcher = HydraConfig.get().runtime.choices["hydra/launcher"]
    if launcher != "basic" and "LOCAL_RANK" in os.environ:
        raise UserError(f"hydra/launcher={launcher} starts processes itself: run it without accelerate launch")


def _finished_or_measured(cell: Cell, logger: Any) -> tuple[dict[str, Any], bool]:
    """The cell's record, and whether it was computed now.

    Of several jobs with one cell one computes it, and of several processes all do.
    """
    from .. import processes
    from ..locks import held
    from .cell import finished_record
    from .loggers import is_due, log_once
    from .measure import measure

    def finished() -> dict[str, Any] | None:
        record = processes.of_main(lambda: finished_record(cell))
        if record is not None and processes.is_main():
            log.info("%s is finished already (force=true computes it again): %s", cell.name, cell.folder)
        return record

    if (record := finished()) is not None:  # to read it takes no right to write a lock
        if processes.is_main() and is_due(logger, cell.folder, record):
            with held(cell.folder):
                log_once(logger, cell.folder, record)
        return record, False
    with held(cell.folder) if processes.is_main() else contextlib.nullcontext():
        if (record := finished()) is not None:  # of another job, while this one waited
            if processes.is_main():
                log_once(logger, cell.folder, record)
            return record, False
        if processes.is_main():
            log.info("%s%s → %s", _number(), cell.name, cell.folder)
            logger.check()
        record = measure(cell)
        if processes.is_main():
            log_once(logger, cell.folder, record)
        return record, True


def _dense_record(cell: Cell, record: dict[str, Any], fresh: bool, debug: bool) -> dict[str, Any] | None:
    """The dense model's record, to be shown beside: found, or measured where that is cheap."""
    from .. import processes
    from .loggers import NoLogger
    from .reference import dense_cell, is_cheap, wanted

    if not wanted(cell, record):
        return None
    try:
        dense = dense_cell(cell)
        return _finished_or_measured(dense, NoLogger())[0] if is_cheap(dense, record, fresh) else None
    except Exception as error:
        if isinstance(error, processes.OtherProcessError):
            raise
        # The cell that was asked for is finished and kept: that there is nothing beside it does not undo it.
        processes.announce(f"{type(error).__name__}: {error}")
        log.warning("the dense model could not be measured beside it: %s", failure(error, debug)[1])
        return None


def _instantiate(section: DictConfig) -> Any:
    from hydra.utils import instantiate

    return instantiate(section)


def _is_sweep() -> bool:
    return HydraConfig.get().mode == RunMode.MULTIRUN


def _where(cell: Cell | None) -> str:
    """Name of the cell of a sweep, or its overrides where the cell could not be named; none of a single run."""
    if not _is_sweep():
        return ""
    return cell.name if cell else " ".join(HydraConfig.get().overrides.task)


def _note_unreachable(cell: Cell, error: OutOfReachError) -> None:
    from .. import processes
    from ..records import UNREACHABLE, sealed, write_json
    from .cell import unreachable_note

    if processes.is_main():
        write_json(cell.folder / UNREACHABLE, sealed(unreachable_note(cell, error)))
