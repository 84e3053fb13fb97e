"""Scores as they follow from the outcomes of items and documents, and whether those of a record do."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

LARGEST_EXPONENT = 700.0
"""Nats a token whose exponential is still a float; beyond them a perplexity is infinite."""


def average_of(values: Collection[float]) -> float | None:
    """Mean of tasks' values, in percent; None without tasks."""
    return 100 * sum(values) / len(values) if values else None


def perplexity_of(nats: float, tokens: int) -> float | None:
    """Exp of the nats per token, infinite where that overflows; None without tokens."""
    if not tokens:
        return None
    return math.exp(nats / tokens) if nats / tokens < LARGEST_EXPONENT else math.inf


def bits_per_byte_of(nats: float, n_bytes: int) -> float | None:
    """Nats over all bytes, in bits: comparable between tokenizers; None without bytes."""
    return nats / math.log(2) / n_bytes if n_bytes else None


def unsupported(record: Mapping[str, Any], items: Mapping[str, Any]) -> str | None:
    """The first score of a record that its items and documents do not make; None where they make all."""
    for name, stated, made in _scores(record, items):
        if None in (stated, made):
            wrong = stated is not made
        else:
            wrong = not math.isclose(stated, made, rel_tol=1e-9, abs_tol=1e-12)
        if wrong:
            return f"{name} is {stated}, and its items make {made}"
    return None


def _scores(record: Mapping[str, Any], items: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name of each score, what the record has, and what follows."""
    tasks, outcomes, documents = record["tasks"] or {}, items["items"], items["documents"]
    yield "the number of tasks", len(tasks), len(outcomes)
    for task, found in outcomes.items():
        score = tasks.get(task, {})
        yield f"the number of items of {task}", score.get("n"), len(found)
        yield f"the score of {task}", score.get("value"), sum(found) / len(found) if found else None
    nats, tokens, n_bytes = (
        sum(document[part] for document in documents) for part in ("nats", "tokens", "bytes")
    )
    yield "average", record["average"], average_of([task["value"] for task in tasks.values()])
    yield "perplexity", record["perplexity"], perplexity_of(nats, tokens)
    yield "bits_per_byte", record["bits_per_byte"], bits_per_byte_of(nats, n_bytes)
    yield "n_documents", record["n_documents"], len(documents)
    yield "n_tokens", record["n_tokens"], tokens
