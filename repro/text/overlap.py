"""Are calibration and evaluation text disjoint? Compared by runs of words that both have.

A text's words are its runs of letters and digits in lower case; spelling, spacing and punctuation do not count.
An evaluation item overlaps with the calibration text when both have `RUN` words in a row in common; an item of
fewer words overlaps when all of it occurs, and one below `SHORTEST` words is too common to say anything.
Compared are the text of the very tokens that calibrate and every item that the suite could ask.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...method.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

RUN = 13
"""Words in a row; what GPT-3 (arXiv 2005.14165, appendix C) took for the overlap of training and test sets."""

SHORTEST = 8
"""Words of the shortest item that is looked for."""

WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Overlap:
    """Items by task, how many of them overlap, and the beginning of the first that does."""

    items: dict[str, int]
    overlapping: dict[str, int]
    example: str

    def to_dict(self) -> dict[str, Any]:
        """Counts as they stand in the record."""
        return {"run_of_words": RUN, "items": self.items, "overlapping": self.overlapping}


def checked_overlap(
    input_ids: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    items: Iterable[tuple[str, str]],
    largest_share: float,
) -> Overlap:
    """The overlap of calibration tokens (sequences, length) with items, (task, text).

    Raises UserError when more than `largest_share` of a task's items overlap.
    """
    overlap = measure_overlap(tokenizer.batch_decode(input_ids, skip_special_tokens=True), items)
    require_disjoint(overlap, largest_share)
    return overlap


def check_recorded(overlap: Mapping[str, Any] | None, largest_share: float) -> None:
    """The same check of what a record keeps of an overlap; records of before it was measured keep none."""
    if overlap is not None:
        require_disjoint(Overlap(overlap["items"], overlap["overlapping"], ""), largest_share)


def measure_overlap(calibration: Sequence[str], items: Iterable[tuple[str, str]]) -> Overlap:
    """Which items, (task, text), overlap with the calibration texts."""
    known: dict[int, set[bytes]] = {}
    overlapping: dict[str, int] = {}
    number: dict[str, int] = {}
    example = ""
    for task, text in items:
        number[task] = number.get(task, 0) + 1
        length, runs = _item_runs(text)
        if not length:
            continue
        if length not in known:
            known[length] = {run for each in calibration for run in _runs(_words(each), length)}
        if not known[length].isdisjoint(runs):
            overlapping[task] = overlapping.get(task, 0) + 1
            example = example or " ".join(text.split())[:80]
    return Overlap(number, overlapping, example)


def apart_from(texts: Iterable[str], items: Iterable[tuple[str, str]]) -> list[str]:
    """Texts with which no item, (task, text), overlaps."""
    known: dict[int, set[bytes]] = {}
    for _, text in items:
        length, runs = _item_runs(text)
        if length:
            known.setdefault(length, set()).update(runs)
    return [
        text
        for text in texts
        if all(runs.isdisjoint(_runs(_words(text), length)) for length, runs in known.items())
    ]


def require_disjoint(overlap: Overlap, largest_share: float) -> None:
    """Raises UserError when more than `largest_share` of a task's items overlap."""
    worst = {
        task: number
        for task, number in overlap.overlapping.items()
        if number > largest_share * overlap.items[task]
    }
    if worst:
        counts = ", ".join(f"{number} of {overlap.items[task]} of {task}" for task, number in worst.items())
        first = f", first '{overlap.example}'" if overlap.example else ""
        raise UserError(
            f"items share {RUN} words in a row with the calibration text: {counts}{first}; "
            "take other calibration text (calibration.seed, calibration=...) or allow a share of each task's "
            "items with largest_overlap=0.01, which the record keeps"
        )


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _item_runs(text: str) -> tuple[int, Iterator[bytes]]:
    """Words in a row that are looked for of an item, and all such runs; 0 and none of a very short one."""
    words = _words(text)
    length = min(RUN, len(words))
    return (length, _runs(words, length)) if length >= SHORTEST else (0, iter(()))


def _runs(words: list[str], length: int) -> Iterator[bytes]:
    """A hash of every run of `length` words."""
    for start in range(len(words) - length + 1):
        yield hashlib.blake2b(" ".join(words[start : start + length]).encode(), digest_size=12).digest()
