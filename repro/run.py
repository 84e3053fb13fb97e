"""The entry point: `python repro/run.py method=wisparse sparsity=0.5`; --help lists every choice."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Run as a script, Python puts this folder first on the search path, where its files would hide packages.
if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    del sys.path[0]

log = logging.getLogger("wisparse")

USER_MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130


class Failure(NamedTuple):
    """What went wrong, in one line, and in which cell of a sweep; a single run needs no name."""

    code: int
    where: str
    message: str


class Sweep:
    """What became of the cells: a sweep goes on after a failed cell and reports it in the end."""

    def __init__(self) -> None:
        self.finished = 0
        self.unreachable: list[str] = []
        self.failures: list[Failure] = []

    def run_cell(self, config: DictConfig) -> None:
        """Compute one cell, or take it from its record; prints the table and the record's line."""
        # Whatever a library prints while the cell is computed belongs on stderr: stdout ends with the record.
        with contextlib.redirect_stdout(sys.stderr):
            outcome = self._outcome(config)
        if outcome is not None:
            from wisparse.repro.cell import record_line
            from wisparse.repro.console import print_record

            print_record(outcome)
            print(record_line(outcome), flush=True)
            self.finished += 1

    def _outcome(self, config: DictConfig) -> dict[str, Any] | None:
        from wisparse.method.errors import OutOfReachError
        from wisparse.repro.cell import finished_record, measure, prepare

        cell = None
        try:
            logger = _instantiate(config.logger)
            cell = prepare(config)
            if record := finished_record(cell):
                log.info("%s is finished already (force=true computes it again): %s", cell.name, cell.folder)
                return record
            log.info("%s → %s", cell.name, cell.folder)
            record = measure(cell)
            logger.log(record)
            return record
        except Exception as error:
            # Kept, not raised: Hydra would end the sweep, and print its own account of the error.
            if isinstance(error, OutOfReachError) and _is_sweep():
                _note_unreachable(cell, error)
                self.unreachable.append(f"{cell.name}: {error}")
            else:
                self.failures.append(_failure(error, _where(cell), config.debug))
        return None

    def summary(self) -> int:
        """Report what did not finish, one line a cell; returns the exit code."""
        for line in self.unreachable:
            print(f"out of reach: {line}", file=sys.stderr)
        for line in self._failed_lines():
            print(f"error: {line}", file=sys.stderr)
        if self.unreachable or (self.failures and self.finished + len(self.failures) > 1):
            print(
                f"{self.finished} finished, {len(self.unreachable)} out of reach, {len(self.failures)} failed",
                file=sys.stderr,
            )
        return min((failure.code for failure in self.failures), default=0)

    def _failed_lines(self) -> list[str]:
        """One line a mistake: what fails alike in many cells, as where a model is not here, is said once."""
        cells: dict[str, list[str]] = {}
        for failure in self.failures:
            cells.setdefault(failure.message, []).append(failure.where)
        lines = []
        for message, (first, *others) in cells.items():
            where = f"{first} and {len(others)} more" if others else first
            lines.append(f"{where}: {message}" if where else message)
        return lines


def _instantiate(section: DictConfig) -> Any:
    from hydra.utils import instantiate

    return instantiate(section)


def _is_sweep() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _where(cell: Any) -> str:
    """Which cell of a sweep; a single run needs no name."""
    if not _is_sweep():
        return ""
    from hydra.core.hydra_config import HydraConfig

    return cell.name if cell else " ".join(HydraConfig.get().overrides.task)


def _note_unreachable(cell: Any, error: Any) -> None:
    from wisparse.repro.cell import unreachable_note
    from wisparse.repro.records import UNREACHABLE, write_json

    write_json(cell.folder / UNREACHABLE, unreachable_note(cell, error))


def _failure(error: BaseException, where: str, debug: bool) -> Failure:
    """Exit code and one line for an exception; with `debug`, its traceback on stderr too."""
    from wisparse.repro.configuration import user_mistake

    if debug:
        traceback.print_exception(error)
    mistake = user_mistake(error)
    if mistake is not None:
        return Failure(USER_MISTAKE, where, mistake)
    brief = " ".join(str(error).split())[:300]
    return Failure(FAILURE, where, f"{type(error).__name__}: {brief} (debug=true shows where)")


def main() -> None:
    """Run the cell, or with -m the cells, that the command line asks for; exits 0, 1, 2 or 130."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s: %(message)s")
    log.setLevel(logging.INFO)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then passes exceptions on, to be put in one line here
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    debug = "debug=true" in [argument.lower() for argument in sys.argv[1:]]
    sys.exit(_run(debug))


def _run(debug: bool) -> int:
    import hydra
    from wisparse.repro.configuration import CONFIGURATION, register_resolvers

    register_resolvers()
    sweep = Sweep()
    entry = hydra.main(version_base="1.3", config_path=str(CONFIGURATION), config_name="config")(sweep.run_cell)
    try:
        entry()
    except KeyboardInterrupt:
        print("interrupted: finished cells are kept, the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        failure = _failure(error, "", debug)
        print(f"error: {failure.message}", file=sys.stderr)
        return failure.code
    return sweep.summary()


if __name__ == "__main__":
    main()
