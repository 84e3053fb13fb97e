"""The items of the embedded suite, built at run time from the installed sympy and networkx.

Nothing of these packages is shipped: a manifest holds the versions the items are made from and a sha256 of
each task's items. `python -m wisparse.repro.embedded.items --write-manifest` renews it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import datasets
from wisparse.method.errors import UserError

from .choice_tasks import CHOICE_TASKS, Item
from .completion_tasks import COMPLETION_TASKS
from .sources import held_out_modules, installed_versions

MANIFEST = Path(__file__).with_name("manifest.json")
TASK_FOLDER = Path(__file__).with_name("tasks")
"""The lm-eval configurations of the tasks, one YAML each."""

BUILDERS = CHOICE_TASKS | COMPLETION_TASKS
TASKS = tuple(name for name in BUILDERS if name != "heldout_text")
"""Names of the tasks with an accuracy; `heldout_text` is measured by its likelihood."""

ITEMS_A_TASK = {name: 600 if name == "heldout_text" else 1000 for name in BUILDERS}
LARGEST_SHARE_OF_A_FILE = 3
"""Items of one file in one task, so that no large module rules a task."""


def build_items(task: str) -> list[Item]:
    """Items of one task in their final, shuffled order: the first n are a sample of all files.

    Every item has `source`, and either `context`, `choices` (distinct) and `answer` (an index), or
    `context` and `target`, or `text`. Depends on the installed packages and on nothing else.
    """
    items: list[Item] = []
    seen: set[str] = set()
    for module in held_out_modules():
        generator = random.Random(f"{task}:{module.path}")
        taken = 0
        for item in BUILDERS[task](module, generator):
            key = item.get("context") or item["text"]
            if key not in seen:
                seen.add(key)
                items.append(item)
                taken += 1
            if taken == LARGEST_SHARE_OF_A_FILE:
                break
    random.Random(task).shuffle(items)
    return items[: ITEMS_A_TASK[task]]


def items_digest(items: list[Item]) -> str:
    """sha256 of the items' canonical JSON."""
    canonical = json.dumps(items, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


@lru_cache(maxsize=len(BUILDERS))
def load_items(task: str) -> tuple[Item, ...]:
    """Items of one task, checked against the manifest; built once a process.

    Raises UserError for a version other than the manifest's, and for other sources under the same version.
    """
    manifest = read_manifest()
    require_versions(manifest["versions"], installed_versions())
    items = build_items(task)
    if items_digest(items) != manifest["tasks"][task]["sha256"]:
        packages = _pins(manifest["versions"])
        raise UserError(
            f"the items of {task} differ from the manifest though the versions agree, so files of the "
            f"installed packages were changed: run pip install --force-reinstall --no-deps {packages}"
        )
    return tuple(items)


def item_texts(tasks: Sequence[str] = TASKS, documents: int | None = None) -> Iterator[tuple[str, str]]:
    """Every context with its right answer, by task; then the first `documents` held-out texts (None: all)."""
    for task in tasks:
        for item in load_items(task):
            answer = item["choices"][item["answer"]] if "choices" in item else item["target"]
            yield task, f"{item['context']}\n{answer}"
    yield from (("heldout_text", item["text"]) for item in load_items("heldout_text")[:documents])


def read_manifest() -> dict[str, dict]:
    """`versions` by package and `tasks` by name, each with `items` and `sha256`."""
    return json.loads(MANIFEST.read_text(encoding="utf-8"))


def require_versions(expected: dict[str, str], found: dict[str, str | None]) -> None:
    """Raise UserError unless the packages the items are made from have the expected versions."""
    wrong = {package: found.get(package) for package in expected if found.get(package) != expected[package]}
    if wrong:
        differences = "; ".join(
            f"{package} {expected[package]} is expected and {version or 'none'} is installed"
            for package, version in sorted(wrong.items())
        )
        pins = _pins({package: expected[package] for package in wrong})
        raise UserError(f"the embedded tasks need other versions: {differences}: run pip install {pins}")


def _pins(versions: dict[str, str]) -> str:
    return " ".join(f"{package}=={version}" for package, version in sorted(versions.items()))


def lm_eval_dataset(task: str, **_metadata: object) -> dict[str, datasets.Dataset]:
    """Items as the split `test`; an lm-eval task configuration names this as its `custom_dataset`."""
    return {"test": datasets.Dataset.from_list(list(load_items(task)))}


def write_manifest() -> None:
    """Renew the manifest from the installed packages."""
    tasks = {}
    for task in BUILDERS:
        items = build_items(task)
        tasks[task] = {"items": len(items), "sha256": items_digest(items)}
    manifest = {"versions": installed_versions(), "tasks": tasks}
    unfinished = MANIFEST.with_suffix(".tmp")
    unfinished.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(MANIFEST)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Items of the embedded suite and their manifest.")
    parser.add_argument("--write-manifest", action="store_true", help="renew it from the installed packages")
    if parser.parse_args().write_manifest:
        write_manifest()
    print(json.dumps(read_manifest(), indent=1))
