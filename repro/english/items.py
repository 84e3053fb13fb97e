"""The items of the English suite, built at run time from prose inside installed packages.

`python -m wisparse.repro.english.items --write-manifest` renews their manifest.
"""

from __future__ import annotations

from pathlib import Path

from ..text.item_set import ItemSet
from .choice_tasks import CHOICE_TASKS
from .completion_tasks import COMPLETION_TASKS
from .documents import EVALUATED, evaluated_documents

BUILDERS = CHOICE_TASKS | COMPLETION_TASKS

ENGLISH = ItemSet(
    name="the English tasks",
    manifest=Path(__file__).with_name("manifest.json"),
    task_folder=Path(__file__).with_name("tasks"),
    builders=BUILDERS,
    files=evaluated_documents,
    packages=tuple(EVALUATED),
    items_a_task=dict.fromkeys(BUILDERS, 300),
)


lm_eval_dataset = ENGLISH.lm_eval_dataset
"""What lm-eval's configurations of the tasks name as their `custom_dataset`."""


if __name__ == "__main__":
    ENGLISH.main()
