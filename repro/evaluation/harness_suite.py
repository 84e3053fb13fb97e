"""Suites for a 7-8B model: benchmarks of lm-eval with its own prompts, and WikiText-2."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lm_eval import evaluator
from lm_eval.api.task import Task
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...method.errors import UserError
from .. import processes
from ..text.articles import apart, articles
from ..text.data_sets import DataSource, check_mirror, load_split, read_files, row_text
from .code_execution import CodeRunner, humaneval_problem
from .harness_tasks import HarnessTask, harness_tasks, load_tasks
from .language_model import SparseLM
from .passes.chat import TODAY
from .passes.context import Session, quiet_lm_eval
from .passes.conventions import conventions
from .suites import Evaluation, TextSuite, task_result

log = logging.getLogger(__name__)

VALIDATION = "validation"


@dataclass(frozen=True)
class HarnessSuite:
    """Benchmarks through lm-eval, each with its own prompts; see conf/suite/paper.yaml for every setting.

    Raises UserError, when it is built, for an unknown task, none that is left, a file that the mirror lacks, or
    code that is to be executed where it cannot be isolated.
    """

    name: str
    tasks: Sequence[str]
    shots: Mapping[str, int]
    data_root: str | None = None
    skip_missing: bool = False
    accept_validation: bool = False
    chat_template: str | bool = "auto"
    limit: int | None = None
    execute_code: bool = False
    code: CodeRunner = field(default_factory=CodeRunner)
    seed: int = 0
    longest_answer: int | None = None
    max_length: int = 4096
    batch_tokens: int = 4096
    batch_size: int = 8

    def __post_init__(self) -> None:
        known = harness_tasks()
        if unknown := sorted(set(self.tasks) - set(known)):
            raise UserError(f"suite.tasks: no task {', '.join(unknown)}; there are {', '.join(known)}")
        if lacking := sorted(set(self.tasks) - set(self.shots)):
            raise UserError(f"suite.shots lacks {', '.join(lacking)}; give +suite.shots.{lacking[0]}=0")
        if self.chat_template not in ("auto", True, False):
            raise UserError(f"suite.chat_template={self.chat_template} is none of auto, true, false")
        if self.data_root is not None:
            self._require_data(self.data_root)
        if not self._chosen:
            raise UserError("no task is left to run; name others in suite.tasks or set suite.execute_code=true")
        if self.execute_code and any(task.executes for task in self._chosen):
            self.code.require_isolation()

    @property
    def _allowed(self) -> list[HarnessTask]:
        """The tasks with their splits: without those that execute code, unless that was asked for."""
        tasks = [self._with_split(harness_tasks()[name]) for name in self.tasks]
        return [task for task in tasks if self.execute_code or not task.executes]

    @property
    def _chosen(self) -> list[HarnessTask]:
        """The tasks that are run: those allowed, without the ones to be skipped."""
        missing = self._missing()
        return [task for task in self._allowed if task.name not in missing]

    def _with_split(self, task: HarnessTask) -> HarnessTask:
        """The task on its validation split, where that is accepted and all that the mirror has."""
        if self.data_root is None or not self.accept_validation:
            return task
        other = replace(task, evaluated=VALIDATION)
        lacks = task.missing(self.data_root, 0) and not other.missing(self.data_root, 0)
        return other if lacks else task

    def _missing(self) -> dict[str, list[str]]:
        """Files that the mirror lacks, by task; of the hub nothing is known before it is asked."""
        if self.data_root is None:
            return {}
        found = {task.name: task.missing(self.data_root, self.shots[task.name]) for task in self._allowed}
        return {name: files for name, files in found.items() if files}

    def _require_data(self, root: str) -> None:
        check_mirror(root)
        missing = self._missing()
        if missing and not (self.skip_missing and self._chosen):
            files = "; ".join(f"{name} ({', '.join(lacking)})" for name, lacking in missing.items())
            raise UserError(
                f"the mirror {root} lacks {files}: put them there, leave data.root out to read from the hub, "
                "or leave these tasks out with suite.skip_missing=true, which must leave one"
            )

    def files(self) -> list[Path]:
        """The tasks' configurations, and the files of the mirror that are read; of the hub there are none."""
        splits = [(task.source, split) for task in self._chosen for split in task.splits(self.shots[task.name])]
        return [*read_files(splits, self.data_root), *(path for task in self._chosen for path in task.files())]

    def texts(self) -> Iterator[tuple[str, str]]:
        """Every item that could be asked, as its task's name and all text it holds."""
        for task in self._chosen:
            for row in task.rows(self.data_root):
                yield task.name, row_text(row)

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise UserError for a chat template that the tokenizer does not have."""
        self._uses_chat_template(tokenizer)

    def run(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, session: Session | None
    ) -> Evaluation:
        """Ask every item, or `limit` items of each task, and score what lm-eval's configuration scores."""
        missing = self._missing()
        for name in sorted(set(self.tasks) - {task.name for task in self._allowed}):
            log.warning("%s is left out: it runs code the model writes; suite.execute_code=true runs it", name)
        if missing:
            log.warning("left out, for the mirror lacks their data: %s", ", ".join(missing))
        for task in self._chosen:
            if task.evaluated is not None:
                log.warning("%s is evaluated on its %s split: the mirror has no other", task.name, task.split)
        chat = self._uses_chat_template(tokenizer)
        language_model = SparseLM(
            model,
            tokenizer,
            session,
            batch_tokens=self.batch_tokens,
            batch_size=self.batch_size,
            max_length=self.max_length,
        )
        samples = self.samples(language_model, chat)
        results, items = {}, {}
        for task in self._chosen:
            items[task.name] = self._outcomes(task, samples[task.name], chat)
            results[task.name] = task_result(
                task.metric, items[task.name], task.chance, self._settings(task, samples[task.name], chat)
            )
        return Evaluation(
            results,
            items,
            details={"left_out": sorted(missing)} if missing else {},
            conventions=conventions(language_model),
        )

    def samples(self, language_model: SparseLM, chat: bool) -> dict[str, list[dict[str, Any]]]:
        """Samples that lm-eval logged of each item, by task, in the order of the data."""
        with quiet_lm_eval():
            loaded = load_tasks(
                self._chosen,
                dict(self.shots),
                self.data_root,
                chat=chat,
                seed=self.seed,
                longest_answer=self.longest_answer,
            )
            chosen = {name: choose_items(name, parts, self.limit) for name, parts in loaded.items()}
            indices = {part: found for by_part in chosen.values() for part, found in by_part.items()}
            parts = {
                part: task for by_part in loaded.values() for part, task in by_part.items() if part in indices
            }
            report = evaluator.evaluate(
                language_model,
                {"tasks": parts},
                samples=None if self.limit is None else indices,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
            )
        samples = {}
        for task in self._chosen:
            samples[task.name] = [
                sample
                for part in chosen[task.name]
                for sample in sorted(report["samples"][part], key=lambda sample: sample["doc_id"])
                if sample["filter"] == task.filter
            ]
        return samples

    def _outcomes(self, task: HarnessTask, samples: list[dict[str, Any]], chat: bool) -> list[float]:
        if not task.executes:
            return [float(sample[task.metric]) for sample in samples]
        problems = [
            humaneval_problem(sample["doc"], sample["filtered_resps"][0], fenced=chat) for sample in samples
        ]
        # By one process: side by side on the same cores, programs would run into the limit on their time.
        return [float(passed) for passed in processes.of_main(lambda: self.code.run_all(problems))]

    def _settings(self, task: HarnessTask, samples: list[dict[str, Any]], chat: bool) -> dict[str, Any]:
        documents = json.dumps([sample["doc"] for sample in samples], sort_keys=True)
        return {
            "shots": self.shots[task.name],
            "chat_template": chat,
            **({"chat_date": TODAY.date().isoformat(), "chat_thinking": False} if chat else {}),
            "filter": task.filter,
            "split": task.split,
            "data_sha256": hashlib.sha256(documents.encode()).hexdigest(),
        }

    def _uses_chat_template(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        has_one = bool(tokenizer.chat_template)
        if self.chat_template is True and not has_one:
            raise UserError("suite.chat_template=true, but this model's tokenizer has none; use false or auto")
        return has_one if self.chat_template == "auto" else bool(self.chat_template)


def choose_items(name: str, parts: Mapping[str, Task], limit: int | None) -> dict[str, list[int]]:
    """Indices into each part's items, ascending; all of them, or `limit` drawn once and for all from all parts.

    The same for every model and method: the task's name is the seed. Parts of which none is drawn are left out.
    """
    items = [(part, index) for part, task in parts.items() for index in range(len(task.eval_docs))]
    if limit is not None and limit < len(items):
        items = random.Random(name).sample(items, limit)
    chosen: dict[str, list[int]] = {part: [] for part in parts}
    for part, index in items:
        chosen[part].append(index)
    return {part: sorted(indices) for part, indices in chosen.items() if indices}


@dataclass(frozen=True)
class WikitextSuite(TextSuite):
    """Perplexity of the test part of WikiText-2 (raw): the data set's lines in order, blank ones left out."""

    name: str
    data_root: str | None = None
    length: int = 2048
    windows: int | None = None
    batch_tokens: int = 4096

    split = "test"

    def __post_init__(self) -> None:
        if self.data_root is not None:
            self.files()

    @property
    def source(self) -> DataSource:
        """The data set."""
        return DataSource("Salesforce/wikitext", "wikitext-2-raw-v1", "wikitext2_raw")

    def files(self) -> list[Path]:
        """The file of the mirror that is read; data of the hub are fetched, and there is none."""
        return read_files([(self.source, self.split)], self.data_root)

    def text(self) -> str:
        """The whole test part. Line ends are one character, whatever the copy of the data has."""
        rows = load_split(self.source, self.split, self.data_root)["text"]
        return "".join(f"{line}\n" for row in rows for line in row.splitlines() if line.strip())

    def texts(self) -> Iterator[tuple[str, str]]:
        """Every paragraph."""
        yield from (("wikitext", line) for line in self.text().splitlines())

    def whole(self) -> tuple[str, str]:
        """The text and its name."""
        return self.text(), "WikiText-2"


@dataclass(frozen=True)
class WikitextApartSuite(WikitextSuite):
    """Perplexity of articles of WikiText-2's validation part that calibration leaves to choose settings on."""

    apart_every: int = 6

    split = VALIDATION

    @property
    def source(self) -> DataSource:
        """The data set whose rare words are <unk>, as calibration texts read it."""
        return DataSource("Salesforce/wikitext", "wikitext-2-v1", "wikitext2_tokenised")

    def text(self) -> str:
        """The articles, a line end after each paragraph."""
        rows = load_split(self.source, self.split, self.data_root)["text"]
        return "".join(f"{article}\n" for article in apart(articles(rows), self.apart_every))

    def whole(self) -> tuple[str, str]:
        """The text and its name."""
        return self.text(), "WikiText-2's validation part, articles apart"
