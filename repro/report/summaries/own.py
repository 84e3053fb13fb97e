"""Own methods on the real model in short, and every setting that was tried on the way to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from ...configuration import REPOSITORY
from ...measured.cells import method_rank
from ...tables.against_bytes.generation_table import GENERATION
from ...tables.against_bytes.plan_times import PLAN_TIMES
from ...tables.against_bytes.tried import CHOSEN_ON, TEXTS
from ...tables.csv_rows import Row, read_rows
from ...tables.table import markdown_table
from ...tables.text import NOT_MEASURED, table_row
from .real import SHOWN, SPARSITIES, mean_shown

COLUMNS = (*SHOWN, ("english", "rise_share", "English rise ÷ TEAL's {}", 2))
"""Suite, column of the CSV, title, and decimals shown."""
OWN = REPOSITORY / "results" / "real" / "method.csv"
OTHER_TEXT = OWN.with_name("method_text.csv")
"""The same of other calibration text, in sequences as long as what is evaluated."""
AMOUNTS = OWN.with_name("text_amounts.csv")
TIMES = OWN.with_name("plan_times.csv")
GENERATED = OWN.with_name("generation.csv")
LEFT_OUT = {"model", "protocol", "seeds", "realised_sparsity", "unchanged"}
"""Columns of the table of generated text that its page alone shows."""
TRIED = REPOSITORY / "results" / "real" / "settings_tried.csv"


def own_table(path: Path = OWN) -> str:
    """Perplexity, its rise and accuracy of own methods and those beside them, means over the seeds."""
    rows = [row for row in read_rows(path) if row["method"] != "dense" and row["search_budget"] == "medium"]
    if not rows:
        return f"*{NOT_MEASURED.capitalize()}.*"
    heads = [title.format(f"{sparsity:.0%}") for *_, title, _ in COLUMNS for sparsity in SPARSITIES]
    lines = [table_row(["", "protocol", "trained", "seeds", *heads, "plan, s"])]
    lines.append("|---|---|---|---:" + "|---:" * (len(heads) + 1) + "|")
    for protocol in sorted({row["protocol"] for row in rows}, reverse=True):
        of_protocol = [row for row in rows if row["protocol"] == protocol]
        for method in sorted({row["method"] for row in of_protocol}, key=method_rank):
            mine = [row for row in of_protocol if row["method"] == method]
            lines.append(table_row([method, protocol, *_shown(mine)]))
    return "\n".join(lines)


def generation_table(path: Path = GENERATED) -> str:
    """What sparse models write, by method and sparsity."""
    rows = read_rows(path)
    if not rows:
        return f"*{NOT_MEASURED.capitalize()}.*"
    shown = [column for column in GENERATION.shown_columns(rows) if column.name not in LEFT_OUT]
    return markdown_table(shown, rows)


def amounts_table(path: Path = AMOUNTS) -> str:
    """Shares of TEAL's rise by the tokens of calibration text, a line a method and sparsity."""
    rows = read_rows(path) if path.exists() else []
    if not rows:
        return f"*{NOT_MEASURED.capitalize()}.*"
    tokens = sorted({int(row["tokens"]) for row in rows})
    lines = [table_row(["", "sparsity", "seeds", *(f"{amount:,} tokens" for amount in tokens)])]
    lines.append("|---|---:|---:" + "|---:" * len(tokens) + "|")
    for curve in dict.fromkeys((row["method"], row["sparsity"]) for row in rows):
        mine = {int(row["tokens"]): row for row in rows if (row["method"], row["sparsity"]) == curve}
        seeds = " to ".join(dict.fromkeys(sorted(row["seeds"] for row in mine.values())))
        shares = [_share_of(mine[amount]) if amount in mine else NOT_MEASURED for amount in tokens]
        lines.append(table_row([f"`{curve[0]}`", f"{float(curve[1]):.0%}", seeds, *shares]))
    return "\n".join(lines)


def _share_of(row: Row) -> str:
    if not row["rise_share"]:
        return f"perplexity {float(row['perplexity']):.2f}"
    return "{:.2f} [{:.2f}, {:.2f}]".format(*(float(row[f"rise_share{end}"]) for end in ("", "_low", "_high")))


def times_table(path: Path = TIMES) -> str:
    """What plans take on a GPU of their own."""
    rows = read_rows(path)
    return markdown_table(PLAN_TIMES.shown_columns(rows), rows) if rows else f"*{NOT_MEASURED.capitalize()}.*"


def _shown(rows: list[Row]) -> Iterator[str]:
    measured = [row for row in rows if row["status"] == "measured"]
    yield "yes" if any(row["trained"] == "True" for row in measured) else ""
    places = Counter(
        (row["suite"], row["sparsity"]) for row in measured if float(row["sparsity"]) in SPARSITIES
    )
    fewest, most = min(places.values(), default=0), max(places.values(), default=0)
    yield str(most) if fewest == most else f"{fewest} to {most}"
    for suite, column, _, digits in COLUMNS:
        of_suite = [row for row in measured if row["suite"] == suite]
        yield from (mean_shown(of_suite, sparsity, column, digits, most) for sparsity in SPARSITIES)
    seconds = [float(row["plan_seconds"]) for row in measured if row["plan_seconds"]]
    yield f"{fmean(seconds):.0f}" if seconds else NOT_MEASURED


def tried_table(path: Path = TRIED, apart: bool = False) -> str:
    """Rise as a share of TEAL's of every setting tried, by text; in italics beyond TEAL's cells.

    apart: of the series that were decided on the text apart, or of the others before.
    """
    tried = [row for row in read_rows(path) if row["rise_share"]]
    decided = {row["series"] for row in tried if row["text"] == TEXTS[CHOSEN_ON]}
    rows = [row for row in tried if (row["series"] in decided) is apart]
    if not rows:
        return f"*{NOT_MEASURED.capitalize()}.*"
    texts = list(dict.fromkeys(row["text"] for row in rows))
    lines = [table_row(["", "sparsity", *texts]), "|---|---:" + "|---:" * len(texts) + "|"]
    for setting, sparsity in dict.fromkeys((row["setting"], row["sparsity"]) for row in rows):
        mine = {row["text"]: row for row in rows if (row["setting"], row["sparsity"]) == (setting, sparsity)}
        lines.append(
            table_row([setting, f"{float(sparsity):.0%}", *(_share(mine.get(text)) for text in texts)])
        )
    return "\n".join(lines)


def _share(row: Row | None) -> str:
    if row is None:
        return NOT_MEASURED
    share = f"{float(row['rise_share']):.2f}"
    return share if row["between_cells"] == "true" else f"*{share}*"
