"""The entry point: `python repro/run.py method=wisparse sparsity=0.5`; --help lists every choice."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

    from wisparse.repro.cell.job import Outcome

# Run as a script, Python puts this folder first on the search path, where its files would hide packages.
if sys.path and Path(sys.path[0] or ".").resolve() == Path(__file__).resolve().parent:
    del sys.path[0]

INTERRUPTED, TERMINATED = 130, 143


class Termination(KeyboardInterrupt):
    """SIGTERM, as a batch system sends it: the command ends as if it had been interrupted by hand."""


def main() -> None:
    """Run the cell, or with -m the cells, that the command line asks for; exits 0, 1, 2, 130 or 143."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        _main()
    except KeyboardInterrupt as stopped:
        print("interrupted: finished cells are kept, the same command goes on from there", file=sys.stderr)
        sys.exit(TERMINATED if isinstance(stopped, Termination) else INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Termination


def _main() -> None:
    from wisparse.repro.cell.job import prepare_process

    prepare_process()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then passes exceptions on, to be put in one line here
    if "LOCAL_RANK" in os.environ:
        from wisparse.repro import processes

        processes.join()
    debug = "debug=true" in [argument.lower() for argument in sys.argv[1:]]
    sys.exit(_run(debug))


def _run(debug: bool) -> int:
    import hydra
    from wisparse.repro.cell.job import FAILED, CellJob, Outcome, failure
    from wisparse.repro.cell.overrides import as_meant
    from wisparse.repro.cell.sweep import Announcement, forget
    from wisparse.repro.configuration import CONFIGURATION

    job, error = CellJob(), None  # a record names the command as it was typed
    Announcement.command = job.outcomes
    entry = hydra.main(version_base="1.3", config_path=str(CONFIGURATION), config_name="config")(job.run)
    try:
        sys.argv = [sys.argv[0], *as_meant(sys.argv[1:])]
        entry()
    except KeyboardInterrupt:
        forget(job.outcomes)
        raise
    except Exception as raised:
        code, line = failure(raised, debug)
        error = Outcome(FAILED, line, code)
    return _finish(job.outcomes, error)


def _finish(outcomes: str, error: Outcome | None) -> int:
    from wisparse.repro.cell.sweep import finish

    if "LOCAL_RANK" not in os.environ:
        return finish(outcomes, error)
    from wisparse.repro import processes

    if error is None:
        code = processes.of_main(lambda: finish(outcomes, None))
    else:
        processes.announce(error.line)
        code = finish(outcomes, error) if processes.is_main() else error.exit_code
    processes.leave()
    return code


if __name__ == "__main__":
    main()
