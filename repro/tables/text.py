"""Text that the tables of records have in common: the settings above them, numbers and rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..measured.cells import MeasuredCell
from ..measured.comparable import search_settings
from ..measured.paired_bootstrap import Interval
from ..record_facts import hardware, is_embedded, model_notes

MEASURED, NOT_MEASURED = "measured", "not measured"
EMBEDDED_NOTE = """\
These are the models of 8 to 11 million parameters embedded in this repository, **not 7-8B results**: they show
how the methods compare, not what they score on large models."""


def headed(title: str, cells: Iterable[MeasuredCell], *, named: str = "") -> str:
    """A page's title; where every cell is of an embedded model, that is said below it.

    named: the title of such a page, where it is another.
    """
    if all(is_embedded(cell.record["config"]) for cell in cells):
        return f"{named or title}\n\n{EMBEDDED_NOTE}"
    return title


def introduced(head: str, lines: Iterable[str]) -> str:
    """A page's title, and what must be known of it, a point each."""
    return "\n".join([head, "", *(f"- {line}" for line in lines)])


def settings_lines(cells: Iterable[MeasuredCell]) -> list[str]:
    """Protocol, suite, calibration, search, device, commit, versions and chance, one line each.

    What the cells share is taken from the first.
    """
    records = [cell.record for cell in cells]
    record = records[0]
    calibration, protocol, suite = (record[part] for part in ("calibration", "protocol", "suite"))
    limits = {name: suite["config"].get(name) for name in ("limit", "documents") if name in suite["config"]}
    limited = f" ({joined(limits)})" if limits else ""
    items = {task: result["n"] for task, result in record["tasks"].items()}
    chances = {task: f"{100 * result['chance']:.0f}" for task, result in record["tasks"].items()}
    seeds = sorted({record["seed"] for record in records})
    documents = f"perplexity on {record['n_documents']} held-out documents, {record['n_tokens']} tokens"
    asked = [f"Items: {joined(items)}"] if items else []
    left_out = [task for task in suite["config"].get("tasks") or () if task not in items]
    lacking = [f"{NOT_MEASURED}: {', '.join(left_out)}"] if left_out else []
    measured = "; ".join([*asked, *([documents] if record["n_documents"] else []), *lacking])
    lines = [
        f"Protocol `{protocol['name']}`, the same for every method: {protocol['description']}.",
        f"Suite `{suite['name']}`{limited}. {measured[:1].upper()}{measured[1:]}.",
        f"Calibration `{calibration['name']}`: {calibration['sequences']} × {calibration['length']} tokens. "
        f"Search budget `{search_settings(record)}`. Seed{'s' if len(seeds) > 1 else ''} "
        f"{', '.join(map(str, seeds))}.",
        f"Device: {distinct(records, device_text)}. Commit: {distinct(records, commit_text)}. "
        f"Versions: {distinct(records, versions_text)}.",
    ]
    if items:
        lines.append(
            f"Tasks and Average in percent; chance: {joined(chances)}. Kept: Average as a share of dense."
        )
    return [*lines, *model_lines(records)]


def model_lines(records: Iterable[dict[str, Any]]) -> list[str]:
    """What must be known of the models of a table, each sentence once."""
    return list(dict.fromkeys(note for record in records for note in model_notes(record)))


def table_row(cells: Iterable[str]) -> str:
    """One line of a Markdown table, whatever the cells hold: a bar in a name would move all behind it."""
    whole = (" ".join(cell.splitlines()).replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(whole)} |"


def interval_text(found: Interval | None, pattern: str) -> str:
    """An estimate with its bounds, each in `pattern`; empty without one."""
    if found is None:
        return ""
    value, low, high = (pattern.format(number) for number in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def number_text(value: float | None, digits: int) -> str:
    """Empty without a number."""
    return "" if value is None else f"{value:.{digits}f}"


def unmeasured_text(maximum: float | None) -> str:
    """Why a cell has no numbers; maximum: the largest sparsity that its method reaches, where that is less."""
    return NOT_MEASURED if maximum is None else f"out of reach (max {maximum:.3f})"


def joined(values: dict[str, Any]) -> str:
    """Name value, name value; no limit is `all`."""
    return ", ".join(f"{name} {'all' if value is None else value}" for name, value in values.items())


def distinct(records: list[dict[str, Any]], find: Callable[[dict[str, Any]], str]) -> str:
    """Texts that `find` gives of the records, each once."""
    return ", ".join(sorted({find(record) for record in records}))


def in_order(records: Iterable[dict[str, Any]], find: Callable[[dict[str, Any]], Any]) -> str:
    """What `find` gives of the records, each once, as they come: numbers are not sorted as texts are."""
    return ", ".join(dict.fromkeys(str(find(record)) for record in records))


def device_text(record: dict[str, Any]) -> str:
    """Data type and device that a record was measured in and on."""
    return f"{record['model']['dtype']} on {hardware(record['model'])}"


def versions_text(record: dict[str, Any]) -> str:
    """Versions of the packages that results depend on most."""
    return f"torch {record['versions']['torch']}, transformers {record['versions']['transformers']}"


def commit_text(record: dict[str, Any]) -> str:
    """Commit of the sources that a record was made with."""
    git = record["git"]
    if git is None:
        return "none (no git)"
    return f"`{git['commit'][:10]}`" + (" with local changes" if git["dirty"] else "")
