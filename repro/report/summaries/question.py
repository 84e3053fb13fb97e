"""Every question that was asked and what was found, a line each: for results/questions/README.md."""

from __future__ import annotations

import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from ...configuration import CONFIGURATION, REPOSITORY
from ...tables.csv_rows import read_rows
from ...tables.questions.question_data import METHOD
from ...tables.questions.question_table import NOT_COMPARABLE
from ...tables.text import NOT_MEASURED, table_row

MOST_ENTRIES = 12
"""Most entries of one line."""
ANSWERS = REPOSITORY / "results" / "questions"


def question_summary(answers: Path = ANSWERS) -> str:
    """Perplexity of what was tried over the reference's at its bytes: median and range over all places.

    Rows that are not comparable at equal bytes are counted and left out of both.

    Seeds differ by the median, over all that was measured, of their highest perplexity over their lowest.
    """
    compared = "perplexity ÷ its at its bytes: median (least to most)"
    lines = [f"| | seeds | they differ by | compared with | {compared} |"]
    lines.append("|---|---:|---:|---|---|")
    for path in sorted((CONFIGURATION / "experiment").glob("question_*.yaml")):
        name = path.stem.removeprefix("question_")
        question = yaml.safe_load(path.read_text(encoding="utf-8"))["question"]
        table = answers / f"{name}.csv"
        if table.exists():
            shown = [
                f"[{question['title']}]({name}.md)",
                *_answer(question, read_rows(table)),
            ]
        else:
            shown = [question["title"], "", "", f"`{question['reference']}`", NOT_MEASURED]
        lines.append(table_row(shown))
    return "\n".join(lines)


def _answer(question: dict[str, Any], rows: list[dict[str, str]]) -> list[str]:
    """Seeds, their spread, the reference, and what was found."""
    compared = [row for row in rows if row["equal_bytes"]]
    levels = _extremes(list(dict.fromkeys(row["level"] for row in compared)))
    methods = {row["method"] for row in compared}
    # What many levels do is said of all methods together; of many methods, what the last level does.
    by_method = question["factor"] != METHOD and len(levels) <= 2
    if by_method and len(methods) * len(levels) > MOST_ENTRIES:
        levels = levels[-1:]
    ratios: dict[str, list[float]] = {}
    left_out: Counter[str] = Counter()
    for row in compared:
        if row["level"] in levels:
            name = f"`{row['method']}` {row['level']}" if by_method else f"`{row['level']}`"
            found = ratios.setdefault(name, [])
            if row["perplexity_ratio"]:
                found.append(float(row["perplexity_ratio"]))
            else:
                left_out[name] += 1
    texts = [_entry(name, found, left_out[name]) for name, found in ratios.items()]
    sparse = [row for row in rows if row["method"] != "dense"]
    seeds = sorted({int(row["seeds"]) for row in sparse})
    counted = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    spreads = [float(row["perplexity_highest"]) / float(row["perplexity_lowest"]) - 1 for row in sparse]
    spread = f"{statistics.median(spreads):.1%}" if seeds[-1] > 1 else ""
    return [counted, spread, f"`{question['reference']}`", "; ".join(texts) or NOT_MEASURED]


def _entry(name: str, found: list[float], left_out: int) -> str:
    if not found:
        return f"{name} {NOT_COMPARABLE}"
    rest = f", {left_out} of {len(found) + left_out} not comparable" if left_out else ""
    return f"{name} {_times(statistics.median(found))} ({_times(min(found))} to {_times(max(found))}{rest})"


def _times(ratio: float) -> str:
    return f"{ratio:.3f}" if ratio < 10.0 else f"{ratio:,.0f}"


def _extremes(levels: list[str]) -> list[str]:
    """The least and the largest of numbers; all of names."""
    try:
        return sorted({min(levels, key=float), max(levels, key=float)}, key=float) if levels else []
    except ValueError:
        return levels
