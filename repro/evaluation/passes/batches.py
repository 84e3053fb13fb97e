"""Batches of what a language model is asked: their order, their padding, and which process computes which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, TypeVar

import torch
from tqdm import tqdm

from ... import processes

Result = TypeVar("Result")


def by_length(
    lengths: Sequence[int], tokens: int, rows: int | None = None, together: int = 1
) -> Iterator[list[int]]:
    """Indices in batches of similar length, the longest first so that memory problems show at once.

    lengths: tokens of each row; a batch has `rows` rows, or as many as keep rows × longest row within `tokens`;
    in any case a multiple of the rows that belong `together`, but for what is left at the end.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        most = rows or max(1, tokens // lengths[batch[0] if batch else index])
        most = max(1, most // together) * together
        if len(batch) == most:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def padded(
    rows: Sequence[list[int]], padding: int, side: Literal["left", "right"] = "right"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and attention mask, both (rows, longest); `padding` stands on that side of the shorter ones."""
    longest = max(len(row) for row in rows)
    tokens = torch.full((len(rows), longest), padding, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for index, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        tokens[index, place] = torch.tensor(row, dtype=torch.long)
        mask[index, place] = 1
    return tokens, mask


def computed(
    batches: Iterable[list[int]], compute: Callable[[list[int]], list[Result]], title: str, quiet: bool
) -> Iterator[tuple[list[int], list[Result]]]:
    """Every batch with its results, in order; each is computed by one of the processes."""
    batches = list(batches)
    quiet = quiet or not processes.is_main()
    with tqdm(total=len(batches), desc=title, disable=quiet, leave=False) as progress:

        def step(batch: list[int]) -> list[Result]:
            found = compute(batch)
            progress.update(processes.count())
            return found

        results = processes.spread(batches, step)
    yield from zip(batches, results, strict=True)
