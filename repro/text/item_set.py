"""Evaluation items built at run time from text that is installed already, and checked against a manifest.

Nothing of that text is shipped: a manifest holds the versions of the packages that the items are made from, and
a sha256 of each task's items.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ...method.errors import UserError
from ..configuration import mistakes_in_one_line
from ..records import write_json
from .installed import installed_versions, pins, require_versions

Item = dict[str, Any]
Value = TypeVar("Value")

TEXT = "heldout_text"
"""The task without an accuracy: texts that are measured by their likelihood."""


CHOICES = 4
"""Choices of an item, most often."""


class Source(Protocol):
    """One installed file that items are made from."""

    path: str
    """Below site-packages, posix."""


Builder = Callable[[Any, random.Random], Iterator[Item]]
"""What makes candidate items of one file, in random order; the first that are new are taken."""


@dataclass(frozen=True, eq=False)
class ItemSet:
    """Tasks on installed text: what builds their items, from which files, and where their manifest is."""

    name: str
    """What messages call it, in the plural."""
    manifest: Path
    task_folder: Path
    """The lm-eval configurations of the tasks, one YAML each."""
    builders: Mapping[str, Builder]
    files: Callable[[], Sequence[Source]]
    packages: tuple[str, ...]
    """Distributions that the files belong to."""
    items_a_task: Mapping[str, int | None]
    """Items of each task, at most; None is all."""
    largest_share_of_a_file: int = 3
    """Items of one file in one task, so that no large file rules a task."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks with an accuracy."""
        return tuple(name for name in self.builders if name != TEXT)

    def build(self, task: str) -> list[Item]:
        """Items of one task in their final, shuffled order: the first n are a sample of all files.

        Every item has `source`, and either `context`, `choices` (distinct) and `answer` (an index), or
        `context` and `target`, or `text`. Depends on the installed packages and on nothing else.
        """
        items: list[Item] = []
        seen: set[str] = set()
        for file in self.files():
            generator = random.Random(f"{task}:{file.path}")
            taken = 0
            for item in self.builders[task](file, generator):
                key = item.get("context") or item["text"]
                if key not in seen:
                    seen.add(key)
                    items.append(item)
                    taken += 1
                if taken == self.largest_share_of_a_file:
                    break
        random.Random(task).shuffle(items)
        return items[: self.items_a_task[task]]

    def load(self, task: str) -> tuple[Item, ...]:
        """Items of one task, checked against the manifest; built once a process.

        Raises UserError for a version other than the manifest's, and for other files under the same version.
        """
        return _loaded(self, task)

    def texts(
        self, tasks: Sequence[str] | None = None, documents: int | None = None
    ) -> Iterator[tuple[str, str]]:
        """Every context with its right answer, by task; then the first `documents` texts (None: all)."""
        for task in self.tasks if tasks is None else tasks:
            for item in self.load(task):
                answer = item["choices"][item["answer"]] if "choices" in item else item["target"]
                yield task, f"{item['context']}\n{answer}"
        yield from ((TEXT, item["text"]) for item in self.load(TEXT)[:documents])

    def read_manifest(self) -> dict[str, dict]:
        """`versions` by package and `tasks` by name, each with `items` and `sha256`."""
        return json.loads(self.manifest.read_text(encoding="utf-8"))

    def lm_eval_dataset(self, task: str, **_metadata: object) -> dict[str, Any]:
        """Items as the split `test`; an lm-eval task configuration names this as its `custom_dataset`."""
        import datasets

        return {"test": datasets.Dataset.from_list(list(self.load(task)))}

    @mistakes_in_one_line()
    def main(self) -> None:
        """Show the manifest; with --write-manifest, renew it from what is installed."""
        parser = argparse.ArgumentParser(description=f"{self.name} and their manifest.")
        parser.add_argument("--write-manifest", action="store_true", help="renew it from what is installed")
        if parser.parse_args().write_manifest:
            tasks = {}
            for task in self.builders:
                items = self.build(task)
                tasks[task] = {"items": len(items), "sha256": items_digest(items)}
            write_json(self.manifest, {"versions": installed_versions(self.packages), "tasks": tasks})
        print(json.dumps(self.read_manifest(), indent=1))


@lru_cache(maxsize=32)
def _loaded(item_set: ItemSet, task: str) -> tuple[Item, ...]:
    manifest = item_set.read_manifest()
    # Before anything is built: files of other versions may not even parse.
    require_versions(item_set.name, manifest["versions"], installed_versions(item_set.packages))
    items = item_set.build(task)
    if items_digest(items) != manifest["tasks"][task]["sha256"]:
        raise UserError(
            f"{item_set.name}: {task} differs from the manifest though the versions agree, so files of the "
            "installed packages were changed: run pip install --force-reinstall --no-deps "
            f"{pins(manifest['versions'])}"
        )
    return tuple(items)


def items_digest(items: list[Item]) -> str:
    """sha256 of the items' canonical JSON."""
    canonical = json.dumps(items, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def shuffled(values: Sequence[Value], generator: random.Random) -> list[Value]:
    """The values in random order: builders take the first that fit and leave the rest unread."""
    return generator.sample(values, len(values))


def other_choices(candidates: Iterable[str], answer: str, generator: random.Random) -> list[str] | None:
    """Three distractors that differ in more than blanks, or None where there are too few."""
    pool = {" ".join(candidate.split()): candidate for candidate in sorted(candidates)}
    pool.pop(" ".join(answer.split()), None)
    return generator.sample(list(pool.values()), CHOICES - 1) if len(pool) >= CHOICES - 1 else None


def choice_item(
    context: str, answer: str, distractors: list[str], file: Source, generator: random.Random
) -> Item:
    """One item with the answer at a random position; `distractors` must differ from it and each other."""
    choices = [*distractors, answer]
    generator.shuffle(choices)
    return {"context": context, "choices": choices, "answer": choices.index(answer), "source": file.path}
