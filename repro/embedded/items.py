"""The items of the embedded suite, built at run time from the installed sympy and networkx.

`python -m wisparse.repro.embedded.items --write-manifest` renews their manifest.
"""

from __future__ import annotations

from pathlib import Path

from ..text.item_set import TEXT, ItemSet
from .choice_tasks import CHOICE_TASKS
from .completion_tasks import COMPLETION_TASKS
from .corpus import HELD_OUT_PACKAGES
from .sources import held_out_modules

BUILDERS = CHOICE_TASKS | COMPLETION_TASKS

EMBEDDED = ItemSet(
    name="the embedded tasks",
    manifest=Path(__file__).with_name("manifest.json"),
    task_folder=Path(__file__).with_name("tasks"),
    builders=BUILDERS,
    files=held_out_modules,
    packages=HELD_OUT_PACKAGES,
    items_a_task={name: 600 if name == TEXT else 1000 for name in BUILDERS},
)


lm_eval_dataset = EMBEDDED.lm_eval_dataset
"""What lm-eval's configurations of the tasks name as their `custom_dataset`."""


if __name__ == "__main__":
    EMBEDDED.main()
