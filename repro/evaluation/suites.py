"""What every suite is and returns, and the perplexity of a text file.

A suite is built by Hydra from `conf/suite/*.yaml`; its one method is `run(model, tokenizer, session)`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...method.errors import UserError
from ..scores import average_of, bits_per_byte_of, perplexity_of
from ..text.calibration_text import read_text
from .language_model import SparseLM, longest_sequence
from .passes.context import Session
from .passes.conventions import conventions

PIECE = 1000
"""Characters of a piece of a long text, when it is compared with the calibration text."""


@dataclass(frozen=True)
class TaskResult:
    """One task: `value`, `stderr` and `chance` (what guessing reaches) of `metric`, all in [0, 1].

    `settings` says how it was asked, where that depends on more than the suite's configuration.
    """

    metric: str
    value: float
    stderr: float
    n: int
    chance: float
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DocumentLikelihood:
    """One held-out document: its negative log-likelihood in nats, its tokens and its bytes."""

    nats: float
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Evaluation:
    """Results of one model on a suite.

    `average` is the mean of the tasks' values in percent; it and the likelihood's figures are None where the
    suite has no tasks or no documents. `items` holds the metric of each item of a task, most often 1.0 or 0.0,
    in the items' order. `details` is what a suite measures besides, ready for JSON; `conventions`: see
    the function of that name; None where nothing was scored or answered.
    """

    tasks: dict[str, TaskResult] = field(default_factory=dict)
    items: dict[str, list[float]] = field(default_factory=dict)
    documents: list[DocumentLikelihood] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    conventions: dict[str, Any] | None = None

    @property
    def average(self) -> float | None:
        """Mean of the tasks' values, in percent."""
        return average_of([result.value for result in self.tasks.values()])

    @property
    def n_documents(self) -> int:
        return len(self.documents)

    @property
    def n_tokens(self) -> int:
        """Tokens scored in the documents."""
        return sum(document.tokens for document in self.documents)

    @property
    def perplexity(self) -> float | None:
        """Exp of the nats per token; infinite where that overflows."""
        return perplexity_of(self._nats, self.n_tokens)

    @property
    def bits_per_byte(self) -> float | None:
        """Nats over all bytes, in bits: comparable between tokenizers."""
        return bits_per_byte_of(self._nats, sum(document.bytes for document in self.documents))

    @property
    def _nats(self) -> float:
        return sum(document.nats for document in self.documents)

    def to_dict(self) -> dict[str, Any]:
        """The summary, ready for JSON."""
        summary = {
            "tasks": {name: asdict(result) for name, result in self.tasks.items()},
            "average": self.average,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "n_documents": self.n_documents,
            "n_tokens": self.n_tokens,
        }
        return summary if self.conventions is None else summary | {"conventions": self.conventions}

    def items_to_dict(self) -> dict[str, Any]:
        """Every item and document, for paired comparisons, and the details; ready for JSON."""
        items = {"items": self.items, "documents": [asdict(document) for document in self.documents]}
        return items | ({"details": self.details} if self.details else {})


class Suite(Protocol):
    """Anything `conf/suite/*.yaml` can name."""

    name: str
    """Name in records."""

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise UserError for what `run` would refuse of a model, before any plan is made."""
        ...

    def run(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, session: Session | None
    ) -> Evaluation:
        """Evaluate the model; `session` is the open sparse session, None for the dense model."""
        ...

    def texts(self) -> Iterable[tuple[str, str]]:
        """Every item that could be asked, as (task, text): what calibration text must not contain."""
        ...

    def files(self) -> Iterable[Path]:
        """Files besides Python sources that results depend on: when one changes, cells are computed again."""
        ...


class TextSuite(ABC):
    """Perplexity of one text in windows of `length` tokens, each scored behind a bos token alone.

    `windows` are read from the beginning, None for all; a rest at the end that fills no window is left out.
    """

    length: int
    windows: int | None
    batch_tokens: int

    @abstractmethod
    def whole(self) -> tuple[str, str]:
        """The text, and what messages call it. Raises UserError where it cannot be read."""

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise UserError for a length that the model does not take, and a text shorter than that."""
        self._windows(model, tokenizer)

    def run(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, session: Session | None
    ) -> Evaluation:
        """Measure the windows. Raises UserError as `check`, and where the text cannot be read."""
        tokens, sizes = self._windows(model, tokenizer)
        language_model = SparseLM(
            model, tokenizer, session, batch_tokens=self.batch_tokens, max_length=self.length
        )
        documents = measure_documents(language_model, tokens[: self.windows], sizes[: self.windows])
        return Evaluation(documents=documents, conventions=conventions(language_model))

    def _windows(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[list[list[int]], list[int]]:
        longest = longest_sequence(model)
        if not 2 <= self.length <= longest:
            raise UserError(f"suite.length is {self.length}: this model takes from 2 to {longest} tokens")
        text, source = self.whole()
        tokens, sizes = text_windows(tokenizer, text, self.length)
        if not tokens:
            raise UserError(
                f"{source} is shorter than one window of {self.length} tokens: "
                "give a longer text or a smaller suite.length"
            )
        return tokens, sizes


@dataclass(frozen=True)
class PerplexitySuite(TextSuite):
    """Perplexity of a UTF-8 text file."""

    name: ClassVar[str] = "perplexity"

    text: str
    length: int = 512
    windows: int | None = None
    batch_tokens: int = 4096

    def __post_init__(self) -> None:
        read_text("suite.text", self.text)  # an unreadable file is refused before any plan is made

    def whole(self) -> tuple[str, str]:
        """The file's text and path. Raises UserError for a file that is missing or not UTF-8."""
        return read_text("suite.text", self.text), self.text

    def texts(self) -> Iterator[tuple[str, str]]:
        """The whole file, in pieces: how much of it the calibration text holds can then be said."""
        text = read_text("suite.text", self.text)
        yield from (("text", text[begin : begin + PIECE]) for begin in range(0, len(text), PIECE))


def task_result(metric: str, outcomes: list[float], chance: float, settings: dict[str, Any]) -> TaskResult:
    """Mean and standard error of per-item outcomes; for outcomes of 0 and 1 the binomial one."""
    n = len(outcomes)
    value = sum(outcomes) / n
    variance = sum((outcome - value) ** 2 for outcome in outcomes) / max(1, n - 1)
    return TaskResult(metric, value, math.sqrt(variance / n), n, chance, settings)


def measure_documents(
    language_model: SparseLM, tokens: Sequence[list[int]], sizes: Sequence[int]
) -> list[DocumentLikelihood]:
    """Likelihood of documents given as tokens without bos, and their sizes in bytes."""
    nats = language_model.document_nats(tokens)
    return [
        DocumentLikelihood(value, len(document), size)
        for value, document, size in zip(nats, tokens, sizes, strict=True)
    ]


def text_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, length: int
) -> tuple[list[list[int]], list[int]]:
    """The full windows of `length` tokens of a text, and the bytes of text each one covers."""
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        split_special_tokens=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    tokens, begins = encoded["input_ids"], [begin for begin, _ in encoded["offset_mapping"]]
    begins.append(len(text))
    starts = range(0, len(tokens) - length + 1, length)
    windows = [tokens[start : start + length] for start in starts]
    sizes = [len(text[begins[start] : begins[start + length]].encode()) for start in starts]
    return windows, sizes
