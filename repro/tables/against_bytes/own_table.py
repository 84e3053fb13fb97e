r"""Own methods on a real model, beside published ones at the same bytes, with what is trained of them.

python -m wisparse.repro.tables method --output results/real/method \
    --records results/real/records/table1 results/real/records/method
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...measured.real_cells import RealData, read_own
from ..table import Column
from .real_rows import RealEntry, entries
from .real_table import REAL, columns, page


def own_columns(tasks: Sequence[str]) -> list[Column[RealEntry]]:
    """Columns of the CSV on this project's methods."""
    return [
        *columns(tasks),
        Column("trained", "Trained", lambda entry: entry.trained),
        Column("plan_seconds", "Plan, s", lambda entry: entry.plan_seconds, 1),
    ]


def own_page(data: RealData) -> str:
    """The page on this project's methods, which says what of it is trained."""
    of_method: dict[str, set[bool]] = {}
    for entry in entries(data):
        if entry.cells:
            of_method.setdefault(entry.method, set()).add(entry.trained)
    trained = sorted(method for method, found in of_method.items() if True in found)
    lines = (
        f"Lightly trained, the model's weights as they are: {', '.join(trained) or 'none'}. The others train "
        "nothing, and have a best of their own.",
        "`equal_loss_*`, `spon` and `teal_folded` are searched with those tokens sparse that are so in "
        "evaluation, as is `wisparse_tokens_protocol`; the others with all.",
    )
    return page(data, "This project's methods", lines)


OWN = replace(
    REAL,
    name="method",
    title="This project's methods on a real model",
    command="python repro/run.py experiment=method_real",
    read=read_own,
    columns=own_columns,
    page=own_page,
)
