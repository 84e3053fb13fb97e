"""A suite on text that is installed already: tasks with an accuracy, and held-out texts with a likelihood."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lm_eval import evaluator
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...method.errors import UserError
from ..text.item_set import TEXT, ItemSet
from .language_model import SparseLM
from .passes.context import Session, quiet_lm_eval
from .passes.conventions import conventions
from .suites import Evaluation, TaskResult, measure_documents, task_result


@dataclass(frozen=True)
class InstalledTextSuite:
    """Tasks and held-out texts made from installed packages; a suite names its items.

    `limit` items of each task and `documents` texts are used, None for all; both are the first of a fixed
    random order. `batch_tokens` and `batch_size` as in SparseLM.
    """

    name: ClassVar[str]
    item_set: ClassVar[ItemSet]

    tasks: Sequence[str]
    limit: int | None = None
    documents: int | None = None
    batch_tokens: int = 4096
    batch_size: int = 32

    def __post_init__(self) -> None:
        known = self.item_set.tasks
        unknown = sorted(set(self.tasks) - set(known))
        if unknown:
            raise UserError(f"suite.tasks: no task {', '.join(unknown)}; there are {', '.join(known)}")
        if not self.tasks and self.documents == 0:
            raise UserError("suite.documents=0 without a task measures nothing; give a text or a task")

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Nothing to refuse of a model."""

    def run(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, session: Session | None
    ) -> Evaluation:
        """Evaluate on the tasks and on the held-out texts."""
        language_model = SparseLM(
            model, tokenizer, session, batch_tokens=self.batch_tokens, batch_size=self.batch_size
        )
        results, items = self._run_tasks(language_model) if self.tasks else ({}, {})
        texts = [item["text"] for item in self.item_set.load(TEXT)[: self.documents]]
        tokens = [language_model.tok_encode(text, add_special_tokens=False) for text in texts]
        documents = measure_documents(language_model, tokens, [len(text.encode()) for text in texts])
        return Evaluation(results, items, documents, conventions=conventions(language_model))

    def files(self) -> list[Path]:
        """The tasks' configurations, and the manifest that their items are checked against."""
        folder = self.item_set.task_folder
        return [self.item_set.manifest, *(folder / f"{task}.yaml" for task in self.tasks)]

    def texts(self) -> Iterator[tuple[str, str]]:
        """Contexts with their right answers, and the held-out texts."""
        return self.item_set.texts(self.tasks, self.documents)

    def _run_tasks(self, language_model: SparseLM) -> tuple[dict[str, TaskResult], dict[str, list[float]]]:
        """Results and per-item outcomes of the tasks through lm-eval, in the order asked for."""
        tasks = list(self.tasks)
        with quiet_lm_eval():
            folder = str(self.item_set.task_folder)
            loaded = TaskManager(include_path=folder, include_defaults=False).load(tasks)
            report = evaluator.evaluate(
                language_model, loaded, limit=self.limit, bootstrap_iters=0, log_samples=True
            )
        results, items = {}, {}
        for name in tasks:
            config = loaded["tasks"][name].config
            metric = config.metric_list[0]["metric"]
            samples = sorted(report["samples"][name], key=lambda sample: sample["doc_id"])
            items[name] = [float(sample[metric]) for sample in samples]
            results[name] = task_result(metric, items[name], float(config.metadata["chance"]), {})
        return results, items
