"""The suite of runs that measure speed alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .passes.context import Session
from .suites import Evaluation


@dataclass(frozen=True)
class NoSuite:
    """Nothing is evaluated; see `Suite`."""

    name: ClassVar[str] = "none"

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Nothing to refuse of a model."""

    def run(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, session: Session | None
    ) -> Evaluation:
        """An empty evaluation."""
        return Evaluation()

    def texts(self) -> tuple[()]:
        """Nothing is asked."""
        return ()
