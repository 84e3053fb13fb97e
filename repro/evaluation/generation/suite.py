"""A suite on what a sparse model generates: divergence from the dense model, arithmetic, self-consistency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ....kernels.engine.sampling import Multinomial
from ....method.errors import UserError
from ....method.running.apply import SparseSession
from ....method.tokens import begin_tokens, stop_tokens
from ..language_model import SparseLM, longest_sequence
from ..passes.batches import computed, padded
from ..passes.context import announced, reproducible_attention
from ..passes.conventions import conventions
from ..passes.generation import AnswerSettings, decoded_answers
from ..suites import Evaluation, Suite, TaskResult, task_result
from .arithmetic import TASKS, Question, last_number, questions
from .divergence import Continuation, continuations

LONGEST = {"sum": 6, "story": 48}
"""Tokens of an answer by task."""
VOTE = "_vote"
"""What the name of a task ends with where the answer is the most frequent of several drawn ones."""


@dataclass(frozen=True)
class GenerationSuite:
    """Continuations of another suite's texts, and arithmetic, greedy and by a vote of drawn answers."""

    name: str
    text: Suite
    """Its texts are the prompts."""
    prompts: int = 32
    prompt_tokens: int = 64
    new_tokens: int = 160
    questions: int = 100
    """Questions of each arithmetic task."""
    samples: int = 5
    """Drawn answers to a question, of which the most frequent counts, of equally frequent ones the first."""
    temperature: float = 0.7
    batch_size: int = 32

    def __post_init__(self) -> None:
        counts = self.prompts, self.prompt_tokens, self.questions, self.samples, self.batch_size
        if min(counts) < 1 or self.new_tokens < 2 or self.temperature <= 0:
            raise UserError(
                "suite=generation needs prompts, prompt_tokens, questions and samples of at least 1, "
                "new_tokens of at least 2, and a temperature above 0"
            )

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise UserError for a model that cannot hold a prompt and its continuation, or a question."""
        asked, longest = self.prompt_tokens + self.new_tokens, longest_sequence(model)
        if asked > longest:
            raise UserError(
                f"suite.prompt_tokens and suite.new_tokens make {asked} tokens; this model takes {longest}"
            )
        begin = len(begin_tokens(tokenizer))
        for task, answer in LONGEST.items():
            prompts = [question.prompt for question in questions(task, self.questions)]
            found = tokenizer(prompts, add_special_tokens=False).input_ids
            if (asked := begin + max(map(len, found)) + answer) > longest:
                raise UserError(
                    f"suite=generation: a {task} with its answer has {asked} tokens; this model takes {longest}"
                )

    def run(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, session: SparseSession | None
    ) -> Evaluation:
        """Tasks: arithmetic, greedy and voted. Details: every continuation, and how far drawn answers agree.

        Raises UserError where the texts give too few prompts.
        """
        language_model = SparseLM(model, tokenizer, session, batch_size=self.batch_size)
        found: list[Continuation] = []
        for rows in self._prompts(language_model).to(language_model.device).split(self.batch_size):
            dense = nullcontext if session is None else session.only_blocks
            found += continuations(model, session, dense, rows, self.new_tokens)
        results: dict[str, TaskResult] = {}
        items: dict[str, list[float]] = {}
        details: dict[str, Any] = {"continuations": [one.to_dict() for one in found], "agreement": {}}
        for task in TASKS:
            asked = questions(task, self.questions)
            items[task] = [
                float(question.is_right(answer))
                for question, answer in zip(asked, self._answers(language_model, task, asked), strict=True)
            ]
            drawn = [self._answers(language_model, task, asked, number) for number in range(self.samples)]
            votes = [_most_frequent(answers) for answers in zip(*drawn, strict=True)]
            items[task + VOTE] = [
                float(vote == question.answer) for question, (vote, _) in zip(asked, votes, strict=True)
            ]
            details["agreement"][task] = sum(share for _, share in votes) / len(votes)
        for task, outcomes in items.items():
            results[task] = task_result("exact_match", outcomes, 0.0, {})
        return Evaluation(results, items, details=details, conventions=conventions(language_model))

    def texts(self) -> Iterator[tuple[str, str]]:
        """The texts that prompts are taken from."""
        yield from self.text.texts()

    def files(self) -> list[Path]:
        """Files that the other suite reads."""
        return getattr(self.text, "files", list)()

    def _prompts(self, language_model: SparseLM) -> torch.Tensor:
        """(prompts, prompt_tokens) first tokens of texts that are long enough, from all over them."""
        rows = {
            tuple(tokens[: self.prompt_tokens])
            for _, text in self.text.texts()
            if len(tokens := language_model.tok_encode(text)) >= self.prompt_tokens
        }
        if len(rows) < self.prompts:
            raise UserError(
                f"suite.text has {len(rows)} texts of {self.prompt_tokens} tokens, too few for suite.prompts="
                f"{self.prompts}; ask for fewer or shorter ones"
            )
        apart = sorted(rows)[:: len(rows) // self.prompts]
        return torch.tensor(apart[: self.prompts])

    def _answers(
        self, language_model: SparseLM, task: str, asked: Sequence[Question], number: int | None = None
    ) -> list[str]:
        """Answers in the order of the questions; greedy, or the drawn ones of a number."""
        model, tokenizer, device = language_model.model, language_model.tokenizer, language_model.device
        settings = AnswerSettings(LONGEST[task], ("\n",))
        prompts = [language_model.tok_encode(question.prompt) for question in asked]
        ends = stop_tokens(model, tokenizer)

        def compute(batch: list[int]) -> list[str]:
            tokens, mask = padded([prompts[index] for index in batch], tokenizer.pad_token_id, "left")
            tokens, mask = tokens.to(device), mask.to(device)
            draw = None
            if number is not None:
                generator = torch.Generator(device).manual_seed(1000 * batch[0] + number)
                draw = Multinomial(self.temperature, generator=generator)
            with announced(language_model.session, mask.sum(dim=1)), reproducible_attention():
                return decoded_answers(model, tokenizer, tokens, mask, settings, ends, draw)

        found = [""] * len(asked)
        batches = [
            list(range(first, min(first + self.batch_size, len(asked))))
            for first in range(0, len(asked), self.batch_size)
        ]
        for batch, answers in computed(batches, compute, f"Arithmetic, {task}", quiet=False):
            for index, answer in zip(batch, answers, strict=True):
                found[index] = answer
        return found


def _most_frequent(answers: Sequence[str]) -> tuple[int | None, float]:
    """The number that most answers end with, and the share of them that do; of equal ones the first."""
    counts = Counter(last_number(answer) for answer in answers)
    vote, number = counts.most_common(1)[0]
    return vote, number / len(answers)
