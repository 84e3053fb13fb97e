"""How much a suite has to read and to generate, counted without a model: results/suite-tokens.csv.

python -m wisparse.repro.cost.suite_tokens data.root=MIRROR
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace

import torch
from hydra import compose
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ..configuration import composing, mistakes_in_one_line
from ..evaluation.harness_suite import HarnessSuite
from ..evaluation.language_model import SparseLM
from ..evaluation.passes.generation import AnswerSettings
from ..evaluation.passes.scoring import ScoredRow
from ..models.checkpoint import find_checkpoint, load_model
from ..records import write_text
from ..tables.csv_rows import csv_text
from .reproduction_cost import SUITE_TOKENS


@dataclass
class TaskTokens:
    """Tokens that one task asks of a model."""

    suite: str
    task: str
    items: int
    tokenizer: str
    """Model whose tokenizer counted; another one needs more or fewer tokens for the same text."""
    read: int = 0
    """Tokens scored or read as prompts, without padding."""
    steps: int = 0
    """Passes that add one token to each row of a generation batch, where no answer ends early."""


class CountingLM(SparseLM):
    """A language model that counts what it is asked for and computes nothing."""

    count: TaskTokens

    def _score(self, groups: list[list[ScoredRow]]) -> list[tuple[float, bool]]:
        self.count.read += sum(len(context) + len(answer) - 1 for (context, answer), *_ in groups)
        return [(0.0, False) for group in groups for _ in group]

    def _answers(self, tokens: torch.Tensor, mask: torch.Tensor, settings: AnswerSettings) -> list[str]:
        self.count.read += int(mask.sum())
        self.count.steps += settings.new_tokens
        return [""] * len(tokens)


def count(overrides: list[str]) -> list[TaskTokens]:
    """Tokens of each task of the configured suite, with the configured model's tokenizer."""
    with composing():
        config = compose("config", overrides=["suite=paper", "suite.execute_code=true", *overrides])
    suite: HarnessSuite = instantiate(config.suite)
    loaded = load_model(find_checkpoint(OmegaConf.to_container(config.model, resolve=True)))
    language_model = CountingLM(
        loaded.model,
        loaded.tokenizer,
        batch_tokens=suite.batch_tokens,
        batch_size=suite.batch_size,
        max_length=suite.max_length,
    )
    # A small model's positions end early; nothing is computed here, and no prompt is to be cut for it.
    language_model._max_length = suite.max_length
    found = []
    for task in suite.tasks:
        language_model.count = TaskTokens(suite.name, task, 0, loaded.checkpoint.name)
        samples = replace(suite, tasks=[task]).samples(language_model, chat=False)
        language_model.count.items = len(samples[task])
        found.append(language_model.count)
        print(asdict(found[-1]), file=sys.stderr, flush=True)
    return found


@mistakes_in_one_line()
def main() -> None:
    """Command line: overrides of the configuration."""
    found = count(sys.argv[1:])
    write_text(SUITE_TOKENS, csv_text(list(asdict(found[0])), map(asdict, found)))
    print(f"written: {SUITE_TOKENS}")


if __name__ == "__main__":
    main()
