"""Generated parts of the README and of the pages behind it: tables of results, the catalogue of methods.

python -m wisparse.repro.report.readme          # `make readme`
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..configuration import CONFIGURATION, REPOSITORY, described, mistakes_in_one_line
from ..cost.reproduction_cost import reproduction
from ..measured.frontier import read_frontier
from ..records import write_text
from ..tables.csv_rows import read_rows
from ..tables.text import NOT_MEASURED, interval_text, table_row
from .summaries.bars import bars_in_short, bars_table, mini_bars_table
from .summaries.field import field_table
from .summaries.massive import dropped_table, entries_table, needs_table
from .summaries.method import biases_table, left_over_table, scaling_table, settings_table
from .summaries.own import OTHER_TEXT, amounts_table, generation_table, own_table, times_table, tried_table
from .summaries.proxies import proxies_table
from .summaries.pruned import pruned_small_table, pruned_table
from .summaries.quantised_plans import formats_table, plans_table
from .summaries.question import question_summary
from .summaries.real import readings_table, real_table
from .summaries.speed import speed_by_bits, speed_by_model, speed_by_setting
from .summaries.speed_bars import speed_bars
from .summaries.steps import cpu_table, steps_by_batch, steps_by_sparsity, steps_of_others
from .summaries.trained import REAL_MODELS, predicted_table, trained_table

TABLE = REPOSITORY / "results" / "table1.csv"
RECORDS = REPOSITORY / "results" / "records"
FRONTIERS = {
    "frontier": ("equal_loss", (RECORDS / "frontier", RECORDS / "frontier_qwen_digits")),
    "frontier_long": ("equal_loss_long", (RECORDS / "frontier_long",)),
}
"""Project's own method, and the records of its cells and of WiSparse's, by block."""
SHOWN_SPARSITIES = (0.5, 0.6)


def catalogue(variants: bool) -> str:
    """One line a method, from the header comment of its configuration: the methods, or their variants.

    A variant is called like its method with something behind: `teal_uniform` is one of `teal`.
    """
    lines = ["| `method=` | what it is |", "|---|---|"]
    names = sorted(path.stem for path in (CONFIGURATION / "method").glob("*.yaml"))
    for name in names:
        if variants is not any(name.startswith(f"{other}_") for other in names):
            continue
        what = described(CONFIGURATION / "method" / f"{name}.yaml")
        linked = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", what)
        lines.append(table_row([f"`{name}`", linked]))
    return "\n".join(lines)


def accuracy() -> str:
    """Average task accuracy and perplexity ratio of every method at the shown sparsities."""
    rows = read_rows(TABLE)
    models = list(dict.fromkeys(row["model"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "dense"))
    cells = {(row["model"], row["method"], float(row["sparsity"])): row for row in rows}
    heads = [f"{model} {sparsity:.0%}" for model in models for sparsity in SHOWN_SPARSITIES]
    lines = [f"| | {' | '.join(heads)} |", "|---" + "|---:" * len(heads) + "|"]
    dense = [
        f"{float(cells[model, 'dense', 0.0]['average']):.1f}" for model in models for _ in SHOWN_SPARSITIES
    ]
    lines.append(f"| dense | {' | '.join(dense)} |")
    for method in methods:
        shown = [_shown(cells.get((model, method, s))) for model in models for s in SHOWN_SPARSITIES]
        lines.append(f"| {method} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _shown(row: dict[str, str] | None) -> str:
    if row is None or not row["average"]:
        return row["status"] if row else NOT_MEASURED
    return f"{float(row['average']):.1f} (×{float(row['perplexity_ratio']):.2f})"


def frontier(method: str, folders: tuple[Path, ...]) -> str:
    """A method of the project's own against WiSparse at the same bytes, at the shown sparsities."""
    data = read_frontier(*folders)
    lines = [
        "| | WiSparse's budget | seeds | rise ÷ WiSparse's | average − WiSparse's | time ÷ WiSparse's |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for model in dict.fromkeys(key[0] for key in data.cells):
        for sparsity in SHOWN_SPARSITIES:
            found = data.comparison(model, method, sparsity)
            if found is None:
                lines.append(f"| {model} {sparsity:.0%} | {NOT_MEASURED} | | | | |")
                continue
            average = interval_text(found.average_difference, "{:+.1f}") or NOT_MEASURED
            time = NOT_MEASURED if found.time_share is None else f"{found.time_share:.3f}"
            share = interval_text(found.rise_share, "{:.2f}")
            shown = [f"{model} {sparsity:.0%}", found.budget, found.seeds_text, share, average, time]
            lines.append(table_row(shown))
    return "\n".join(lines)


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {
        "speed": speed_by_model,
        "bits": speed_by_bits,
        "real": real_table,
        "catalogue": partial(catalogue, variants=False),
    },
    "docs/paper.md": {"variants": partial(catalogue, variants=True)},
    "docs/findings.md": {"accuracy": accuracy}
    | {name: partial(frontier, *of) for name, of in FRONTIERS.items()},
    "docs/wisparse-reproduction.md": {"readings": readings_table},
    "docs/method.md": {
        "settings": settings_table,
        "own": own_table,
        "bars in short": bars_in_short,
        "bars": bars_table,
        "bars of small models": mini_bars_table,
        "text": partial(own_table, OTHER_TEXT),
        "amounts": amounts_table,
        "times": times_table,
        "biases": biases_table,
        "generation": generation_table,
        "scaling": scaling_table,
        "choice": partial(tried_table, apart=True),
        "tried": tried_table,
        "left over": left_over_table,
        "massive entries": entries_table,
        "massive entries dropped": dropped_table,
        "massive needs": needs_table,
    },
    "docs/field.md": {
        "measured": field_table,
        "trained": trained_table,
        "trained real": partial(trained_table, REAL_MODELS),
        "predicted": predicted_table,
        "proxies": proxies_table,
    },
    "docs/quantisation.md": {
        "pruned": pruned_table,
        "pruned_small": pruned_small_table,
        "steps": steps_by_sparsity,
        "others": steps_of_others,
        "cpu": cpu_table,
        "formats": formats_table,
        "plans": plans_table,
    },
    "docs/speed.md": {"settings": speed_by_setting, "batches": steps_by_batch, "speed bars": speed_bars},
    "docs/cost.md": {"reproduction": reproduction},
    "results/questions/README.md": {"questions": question_summary},
}
"""The generated blocks of every page, by its path and the block's name."""


def filled(page: str, text: str) -> str:
    """The text of a page with its generated blocks made anew; raises ValueError when a marker is missing."""
    for name, make in PAGES[page].items():
        begin, end = f"<!-- {name}: made by `make readme` -->", f"<!-- end of {name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"{page} lacks the markers of its block '{name}'")
        before, after = text.split(begin, maxsplit=1)[0], text.split(end)[1]
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return text


@mistakes_in_one_line()
def main() -> None:
    """Write the generated blocks of every page."""
    for page in PAGES:
        path = REPOSITORY / page
        write_text(path, filled(page, path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
