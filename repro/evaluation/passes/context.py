"""Around the passes of a batch: what the sparse session knows, which attention runs, what an error says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Protocol

import torch
from lm_eval.api import task as requests
from lm_eval.api.instance import Instance
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from .scoring import NotFiniteError

REPRODUCIBLE_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Session(Protocol):
    """Interface of a sparse session: it reads `prompt_lengths`, (batch,), in every forward pass."""

    prompt_lengths: torch.Tensor | None
    rows_sharing: int
    """Rows of a pass, after each other, that stand for a batch of an engine."""


def reproducible_attention() -> AbstractContextManager[None]:
    """Attention without cuDNN, inside.

    Decoding with cuDNN's, the same process answers the same prompts differently the next time (seen with
    bfloat16, a batch of 8, one H200, torch 2.11), and no number of processes gives the numbers of another.
    """
    return sdpa_kernel(REPRODUCIBLE_ATTENTION)


@contextmanager
def announced(session: Session | None, prompt_lengths: torch.Tensor) -> Iterator[None]:
    """Let the session know the rows' prompt lengths for the passes made inside."""
    if session is None:
        yield
        return
    session.prompt_lengths = prompt_lengths
    try:
        yield
    finally:
        session.prompt_lengths = None


def name_of(request: Instance) -> str:
    """Words for a request in an error."""
    return f"{request.task_name}, item {request.doc_id}" if request.task_name else f"item {request.idx}"


@contextmanager
def naming(name: Callable[[int], str], place: Callable[[int], int] = int) -> Iterator[None]:
    """Context in which a NotFiniteError says in words what its row is, and which place it has outside."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(error.model, place(error.row), name(error.row)) from None


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Keep lm-eval's log to errors inside, and leave out its nameless bars, one a task, that stay behind."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    bar, requests.tqdm = requests.tqdm, partial(requests.tqdm, disable=True)
    try:
        yield
    finally:
        logger.setLevel(level)
        requests.tqdm = bar


@contextmanager
def weights_as_they_are(model: PreTrainedModel) -> Iterator[None]:
    """Keep lm-eval from tying lm_head to the embedding inside, which would be another model."""
    model.tie_weights = lambda: None
    try:
        yield
    finally:
        del model.tie_weights
