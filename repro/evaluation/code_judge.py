"""The judge of an answer: a problem's tests run in one process, the answer in another, with values in between.

The tests call a function that sends its arguments and gets a value back, written as plain data. An answer can
thus neither reach the verdict nor return an object equal to everything: it passes by right values alone.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from typing import Any, BinaryIO

LONGEST_VALUE = 1 << 24
"""Bytes of a written value."""
READERS: dict[str, Callable[[Any], Any]] = {
    "float": float.fromhex,
    "bytes": bytes.fromhex,
    "complex": lambda parts: complex(*map(float.fromhex, parts)),
    "Decimal": Decimal,
    "Fraction": Fraction,
    "range": lambda parts: range(*parts),
    "list": lambda parts: [read_value(part) for part in parts],
    "tuple": lambda parts: tuple(map(read_value, parts)),
    "set": lambda parts: set(map(read_value, parts)),
    "frozenset": lambda parts: frozenset(map(read_value, parts)),
    "dict": lambda parts: {read_value(name): read_value(value) for name, value in parts},
    "iterator": lambda parts: iter([read_value(part) for part in parts]),
}
"""What makes a value of its content, by kind."""

CONTENTS: dict[str, tuple[type | tuple[type, ...], Callable[[Any], Any]]] = {
    "float": (float, lambda value: float(value).hex()),
    "bytes": ((bytes, bytearray), lambda value: value.hex()),
    "complex": (complex, lambda value: [value.real.hex(), value.imag.hex()]),
    "Decimal": (Decimal, str),
    "Fraction": (Fraction, str),
    "range": (range, lambda value: [value.start, value.stop, value.step]),
    "dict": (dict, lambda value: [[written(name), written(part)] for name, part in value.items()]),
    **{
        kind.__name__: (kind, lambda value: list(map(written, value))) for kind in (list, tuple, set, frozenset)
    },
    # Generators, views and the like: what they give, in order.
    "iterator": (Iterable, lambda value: list(map(written, value))),
}
"""The content that stands for a value, by kind; the first kind that fits."""


class CannotJudgeError(Exception):
    """The tests cannot be asked in this way: the problem is at fault, not the answer."""


class AnswerError(Exception):
    """The answer ended, or replied what is no value."""


def written(value: Any) -> Any:
    """A value as JSON can hold it: itself, or a list of kind and content. Raises TypeError for other kinds."""
    if value is None or isinstance(value, bool):
        return value
    for simple in (int, str):
        if isinstance(value, simple):
            return simple(value)
    for kind, (types, content) in CONTENTS.items():
        if isinstance(value, types):
            return [kind, content(value)]
    raise TypeError(f"{type(value).__name__} is no plain data")


def read_value(form: Any) -> Any:
    """The value of a written form."""
    if isinstance(form, list):
        kind, content = form
        return READERS[kind](content)
    return form


def judged(problem: dict[str, Any], limit: Callable[[], None], report: int) -> dict[str, Any]:
    """Whether the answer passes the problem's tests, and what went wrong.

    `limit` bounds the process that calls it; it is called in both, and neither may start processes afterwards.
    `report` is a file descriptor that the answer must not have. Raises CannotJudgeError.
    """
    with suppress(AttributeError):  # early releases of Python 3.10 know no limit
        sys.set_int_max_str_digits(0)
    (asked, ask), (answered, answer) = os.pipe(), os.pipe()
    if os.fork() == 0:
        with suppress(BaseException):
            os.setsid()  # signals to its process group reach nobody else
            for descriptor in (ask, answered, report):
                os.close(descriptor)
            limit()
            _answer(problem, os.fdopen(asked, "rb"), os.fdopen(answer, "wb"))
        os._exit(0)
    os.close(asked)
    os.close(answer)
    limit()
    try:
        _ask(problem, os.fdopen(answered, "rb"), os.fdopen(ask, "wb"))
    except CannotJudgeError:
        raise
    except BaseException as error:
        return {"passed": False, "failure": f"{type(error).__name__}: {error}"[:300]}
    return {"passed": True, "failure": ""}


def _ask(problem: dict[str, Any], replies: BinaryIO, requests: BinaryIO) -> None:
    """Run the tests; whatever they raise means that they failed."""

    def received() -> dict[str, Any]:
        line = replies.readline(LONGEST_VALUE)
        if not line.endswith(b"\n"):
            raise AnswerError("the program ended, or its value is too long")
        reply = json.loads(line)
        if "raised" in reply:
            kind = getattr(builtins, str(reply["raised"]), None)
            is_usual = isinstance(kind, type) and issubclass(kind, Exception)
            raise (kind if is_usual else AnswerError)(str(reply.get("message")))
        return reply

    def candidate(*arguments: Any, **named: Any) -> Any:
        try:
            form = written([list(arguments), named])
        except TypeError as error:
            raise CannotJudgeError(f"the tests of {name} pass what is no plain data: {error}") from error
        requests.write(json.dumps(form).encode() + b"\n")
        requests.flush()
        return read_value(received()["value"])

    name: str = problem["entry_point"]
    namespace: dict[str, Any] = {"__name__": "program"}
    try:
        exec(compile(problem["prompt"], "prompt", "exec"), namespace)
    except Exception as error:
        raise CannotJudgeError(f"the prompt of {name} does not run by itself: {error}") from error
    received()  # the answer has run without an exception and waits
    namespace[name] = candidate
    exec(compile(problem["test"], "test", "exec"), namespace)
    namespace["check"](candidate)


def _answer(problem: dict[str, Any], requests: BinaryIO, replies: BinaryIO) -> None:
    """Run the program, then its function for each request."""

    def reply(content: dict[str, Any]) -> None:
        replies.write(json.dumps(content).encode() + b"\n")
        replies.flush()

    namespace: dict[str, Any] = {"__name__": "program"}
    exec(compile(problem["prompt"] + problem["answer"], "program", "exec"), namespace)
    reply({"value": None})
    for line in requests:
        arguments, named = read_value(json.loads(line))
        try:
            content = {"value": written(namespace[problem["entry_point"]](*arguments, **named))}
        except Exception as error:
            content = {"raised": type(error).__name__, "message": str(error)}
        reply(content)
