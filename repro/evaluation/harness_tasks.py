"""Tasks of lm-eval with its own prompts, on data from a local mirror or from the hub.

One YAML in `repro/paper_tasks` a task names lm-eval's configuration, whose prompts, choices, stop strings and
filters are used as they are; what it replaces is where the data come from and how many shots there are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import lm_eval.tasks
import yaml
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from ...method.errors import UserError
from ..text.data_sets import DataSource, load_split

TASK_FOLDER = Path(__file__).with_name("paper_tasks")
HARNESS_FOLDER = Path(lm_eval.tasks.__file__).parent

TEXT_FIELDS = ("doc_to_text", "doc_to_target", "gen_prefix", "generation_kwargs", "output_type")
"""Fields that a task with executed answers takes over from lm-eval; its own scoring loads code from the hub."""


@dataclass(frozen=True)
class HarnessTask:
    """One benchmark: where lm-eval keeps its prompts, where its data are, and what is reported of it."""

    name: str
    prompts: str
    """lm-eval's configuration below its folder of tasks; with `*`, several that make up one benchmark."""
    folder: str
    """Folder of its data in a local mirror."""
    chance: float
    """Score that guessing reaches."""
    metric: str = "acc"
    filter: str = "none"
    """Which of lm-eval's ways to extract an answer counts."""
    chat_prompts: str | None = None
    """lm-eval's configuration for chat models, where it is another one."""
    hub_config: str | None = None
    """The hub's configuration that holds all rows, where lm-eval names one for each part."""
    column: str | None = None
    """The column whose value tells the parts apart."""
    executes: bool = False
    """Its answers are programs, which pass or fail."""
    columns: dict[str, str] = field(default_factory=dict)
    """Columns that lm-eval's prompts read, by what else a mirror may call them."""
    evaluated: str | None = None
    """The split that is evaluated instead of lm-eval's own."""

    def configurations(self, chat: bool) -> list[Path]:
        """lm-eval's files, in order of name."""
        found = sorted(HARNESS_FOLDER.glob(self.chat_prompts if chat and self.chat_prompts else self.prompts))
        if not found:
            raise UserError(f"the installed lm-eval has no {self.prompts}; run `make setup`")
        return found

    def files(self) -> list[Path]:
        """Description of the task in this project, and lm-eval's files with its prompts."""
        prompts = dict.fromkeys([*self.configurations(False), *self.configurations(True)])
        return [TASK_FOLDER / f"{self.name}.yaml", *prompts]

    @property
    def source(self) -> DataSource:
        """Its data set."""
        settings = _read(self.configurations(False)[0])
        config = self.hub_config or settings.get("dataset_name")
        return DataSource(settings["dataset_path"], config, self.folder)

    @property
    def split(self) -> str:
        """The split that is evaluated: lm-eval's, unless another was asked for."""
        if self.evaluated is not None:
            return self.evaluated
        settings = _read(self.configurations(False)[0])
        return settings.get("test_split") or settings["validation_split"]

    @property
    def example_split(self) -> str:
        """The split that lm-eval takes shots from."""
        settings = _read(self.configurations(False)[0])
        return settings.get("fewshot_split") or settings.get("training_split") or self.split

    def splits(self, shots: int) -> list[str]:
        """The splits that are read."""
        return list(dict.fromkeys([self.split, *([self.example_split] if shots else [])]))

    def missing(self, root: str, shots: int) -> list[str]:
        """Files below a mirror's folder that it lacks of this task."""
        files = [f"{self.folder}/{split}.parquet" for split in self.splits(shots)]
        return [file for file in files if not (Path(root).expanduser() / file).is_file()]

    def rows(self, root: str | None) -> Iterator[dict[str, Any]]:
        """Every row that could be asked."""
        yield from load_split(self.source, self.split, root)


@lru_cache(maxsize=1)
def harness_tasks() -> dict[str, HarnessTask]:
    """All tasks there are, by name."""
    return {
        path.stem: HarnessTask(path.stem, **yaml.safe_load(path.read_text(encoding="utf-8")))
        for path in sorted(TASK_FOLDER.glob("*.yaml"))
    }


def load_tasks(
    tasks: Sequence[HarnessTask],
    shots: dict[str, int],
    root: str | None,
    *,
    chat: bool,
    seed: int,
    longest_answer: int | None,
) -> dict[str, dict[str, Task]]:
    """lm-eval's own task objects by name, for each task one or, of several parts, one a part.

    `seed` chooses the shots; `longest_answer` bounds generated tokens, None for each task's own bound.
    Raises UserError for data that are missing.
    """
    with tempfile.TemporaryDirectory() as folder:
        names: dict[str, list[str]] = {}
        for task in tasks:
            names[task.name] = []
            for path in task.configurations(chat):
                settings = _settings(task, path, shots[task.name], root, longest_answer)
                _write(Path(folder) / f"{settings['task']}.yaml", settings)
                names[task.name].append(settings["task"])
        manager = TaskManager(include_path=folder, include_defaults=False)
        loaded = manager.load([name for parts in names.values() for name in parts])["tasks"]
    for task in loaded.values():
        task.set_fewshot_seed(seed)  # lm-eval's evaluate() leaves it to chance
    return {name: {part: loaded[part] for part in parts} for name, parts in names.items()}


def _settings(
    task: HarnessTask, path: Path, shots: int, root: str | None, longest_answer: int | None
) -> dict[str, Any]:
    """The configuration handed to lm-eval: its own, included, with our data."""
    upstream = _read(path)
    if task.executes:
        settings = {name: upstream[name] for name in TEXT_FIELDS if name in upstream}
        settings |= {"metric_list": [{"metric": "bypass"}]}
    else:
        settings = {"include": str(path)}
    if longest_answer is not None and upstream["output_type"] == "generate_until":
        bound = min(longest_answer, upstream["generation_kwargs"].get("max_gen_toks", longest_answer))
        settings["generation_kwargs"] = upstream["generation_kwargs"] | {"max_gen_toks": bound}
    part = {"column": task.column, "value": upstream["dataset_name"]} if task.column else {}
    return settings | {
        "task": task.name if not task.column else f"{task.name}_{upstream['dataset_name']}",
        "num_fewshot": shots,
        "training_split": None,
        "validation_split": None,
        "test_split": task.split,
        "fewshot_split": task.example_split if shots else None,
        "dataset_kwargs": {
            "source": asdict(task.source),
            "splits": task.splits(shots),
            "root": root,
            "columns": task.columns,
            **part,
        },
    }


def _write(path: Path, settings: dict[str, Any]) -> None:
    # The tag names a function, which YAML's plain writer cannot.
    loader = "custom_dataset: !function wisparse.repro.text.data_sets.lm_eval_dataset\n"
    path.write_text(yaml.safe_dump(settings, sort_keys=False) + loader, encoding="utf-8")


class _DataLoader(yaml.SafeLoader):
    """YAML as data: functions that lm-eval names are neither looked up nor called."""


_DataLoader.add_constructor("!function", lambda _loader, node: node.value)


@lru_cache(maxsize=256)
def _read(path: Path) -> dict[str, Any]:
    """One of lm-eval's configurations with what it includes."""
    settings = yaml.load(path.read_text(encoding="utf-8"), Loader=_DataLoader)
    included = settings.pop("include", None)
    return {**(_read(path.parent / included) if included else {}), **settings}
