"""Arithmetic of our own at a size that small models can do: sums, and stories of two steps with their working.

Questions are drawn from a fixed seed, so that every model, method and machine is asked the same.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

SHOTS = 4
"""Questions with their answers that stand before the one that is asked."""
INTEGER = re.compile(r"\d+")
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry")
THINGS = ("apples", "books", "coins", "marbles", "pencils", "shells", "stamps", "tickets")


@dataclass(frozen=True)
class Question:
    """A question behind questions that are answered."""

    prompt: str
    """Ends where the answer begins, on the same line."""
    answer: int

    def is_right(self, text: str) -> bool:
        """Whether the last number of an answer is the right one."""
        return last_number(text) == self.answer


def last_number(text: str) -> int | None:
    """Last whole number of an answer; None without one."""
    found = INTEGER.findall(text)
    return int(found[-1]) if found else None


def _sum(draw: random.Random) -> tuple[str, str, int]:
    left, right = draw.randint(1, 9), draw.randint(1, 9)
    return f"{left} + {right} =", f" {left + right}", left + right


def _story(draw: random.Random) -> tuple[str, str, int]:
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    first, more = draw.randint(2, 6), draw.randint(1, 4)
    total = first + more
    less = draw.randint(1, 2)
    question = (
        f"Question: {name} has {first} {thing}. {name} gets {more} more {thing} and gives away {less}. "
        f"How many {thing} does {name} have now? Answer:"
    )
    left = total - less
    return question, f" {first} + {more} = {total}. {total} - {less} = {left}. The answer is {left}", left


TASKS: Mapping[str, Callable[[random.Random], tuple[str, str, int]]] = {"sum": _sum, "story": _story}
"""Question, answer with its working, and the number asked for, by the task's name."""


def questions(task: str, count: int) -> list[Question]:
    """The first `count` questions of a task, each behind `SHOTS` answered ones of its own."""
    draw, found = random.Random(task), []
    for _ in range(count):
        shown = [TASKS[task](draw) for _ in range(SHOTS)]
        asked, _, answer = TASKS[task](draw)
        found.append(Question("".join(f"{q}{worked}\n" for q, worked, _ in shown) + asked, answer))
    return found
