"""How every program ends: its output is written, and what a user can put right is one line, not a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import KernelError
from .shared_files import unusable_file

MISTAKE, INTERRUPTED, UNREAD = 2, 130, 141
"""Exit codes; the last two are those that a shell reports of what Ctrl-C or a reader such as `head` ended."""


def refusal(error: BaseException) -> str | None:
    """What the user should do: of what kernels refuse and what cannot be written; None of other errors."""
    if isinstance(error, KernelError):
        return str(error)
    return unusable_file(error) if isinstance(error, OSError) else None


@contextmanager
def ends_in_one_line(explain: Callable[[Exception], str | None] = refusal) -> Iterator[None]:
    """A program from its arguments to its last line, as a decorator of its `main`.

    A mistake that `explain` has words for ends it with exit code 2 and one line on stderr, as does a standard
    output without room. Ctrl-C, and a reader of its output that has seen enough, end it without a word. Other
    errors pass.
    """
    try:
        with _written_output():
            yield
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        _write_no_more()
        sys.exit(UNREAD)
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        print(f"error: {' '.join(line.split())}", file=sys.stderr)  # what a user typed may have several
        if isinstance(error, OSError) and error.filename is None:
            _write_no_more()
        sys.exit(MISTAKE)


@contextmanager
def _written_output() -> Iterator[None]:
    """Write out standard output in the end, while an error can still be said, behind `--help` too."""
    try:
        yield
    except SystemExit:
        print(end="", flush=True)
        raise
    print(end="", flush=True)


def _write_no_more() -> None:
    """Drop what standard output still holds: without room or a reader for it the exit would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
