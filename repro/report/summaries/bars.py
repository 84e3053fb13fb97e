"""What was aimed at with this project's methods, and whether it was reached."""

from __future__ import annotations

from pathlib import Path

from ...configuration import REPOSITORY
from ...tables.against_bytes.bars_table import MINI, REAL
from ...tables.csv_rows import Row, read_rows
from ...tables.table import is_number
from ...tables.text import NOT_MEASURED, table_row

BARS = REPOSITORY / "results" / "real" / "bars.csv"
TIMES = BARS.with_name("plan_times.csv")
TEXTS = {
    "english": "prose",
    "english_wikitext": "prose and WikiText-2's validation part",
    "unseen": "code that the models were not trained on",
}
"""What the calibration texts are, by name."""
SUITES = {"wikitext": "WikiText-2", "english": "English"}


def bars_table(path: Path = BARS) -> str:
    """Every aim on the real model beside what was reached, a line for both suites."""
    wanted = {place[0] for place in REAL}
    rows = [row for row in read_rows(path) if row["model"] in wanted]
    heads = ["", "method", "calibration text", "protocol", "sparsity", "aimed at", *SUITES.values()]
    lines = [table_row(heads), "|---|---|---|---|---:|---:|" + "---|" * len(SUITES)]
    places = dict.fromkeys((row["method"], row["protocol"], row["sparsity"]) for row in rows)
    for place in places:
        mine = [row for row in rows if (row["method"], row["protocol"], row["sparsity"]) == place]
        found = [reached(next(row for row in mine if row["suite"] == suite)) for suite in SUITES]
        what = [_kind(mine[0]), f"`{mine[0]['method']}`", _text(mine[0], rows), mine[0]["protocol"]]
        lines.append(table_row([*what, *_aim(mine[0]), *found]))
    return "\n".join(lines)


def bars_in_short(path: Path = BARS, times: Path = TIMES) -> str:
    """How many shares each method of the real model meets, which it misses, and what its plan takes."""
    wanted = {place[0] for place in REAL}
    rows = [row for row in read_rows(path) if row["model"] in wanted]
    took = {row["method"]: row["share"] for row in read_rows(times) if row["share"]}
    heads = ["", "calibration text", "aims met", "measured", "missed, or open beside SPON", "plan ÷ WiSparse's"]
    lines = [table_row(heads), "|---|---|---:|---:|---|---:|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        measured = [row for row in mine if row["rise_share"]]
        met = [row for row in measured if row["verdict"] == "met"]
        missed = "; ".join(_missed(row) for row in measured if row not in met)
        time = f"{float(took[method]):.3f}" if method in took else NOT_MEASURED
        counts = [str(len(met)), f"{len(measured)} of {len(mine)}"]
        lines.append(table_row([f"`{method}`", _text(mine[0], rows), *counts, missed, time]))
    return "\n".join(lines)


def _missed(row: Row) -> str:
    share, aim = float(row["rise_share"]), float(row["aim"])
    place = f"{SUITES[row['suite']]}, {row['protocol']}, {float(row['sparsity']):.0%}"
    said = "open, " if row["verdict"] == "open" else ""
    return f"{place}: {said}{_apart(share, aim)} of `{row['published']}` for {aim:.2f}"


def mini_bars_table(path: Path = BARS) -> str:
    """Every aim on the small models beside what was reached."""
    wanted = {place[0] for place in MINI}
    rows = [row for row in read_rows(path) if row["model"] in wanted]
    heads = ["", "calibration text", "model", "protocol", "sparsity", "aimed at", "reached"]
    lines = [table_row(heads), "|---|---|---|---|---:|---:|---|"]
    for row in rows:
        what = [_kind(row), _text(row, rows), row["model"], row["protocol"]]
        lines.append(table_row([*what, *_aim(row), reached(row)]))
    return "\n".join(lines)


def reached(row: Row) -> str:
    """The share of the best published method's rise, the accuracy beside its, and whether that is the aim."""
    if not row["rise_share"]:
        return row["verdict"]
    points = _points(row, "{:+.1f} [{:+.1f}, {:+.1f}] points")
    seeds = f"{row['seeds']} seed{'s' if row['seeds'] != '1' else ''}"
    share = f"{_apart(float(row['rise_share']), float(row['aim']))} of `{row['published']}`"
    return f"{row['verdict']}: {', '.join(filter(None, [share, points, seeds, _beside_trained(row)]))}"


def _beside_trained(row: Row) -> str:
    """The share of trained SPON's rise, where the row is held against another method."""
    share = row["rise_share_of_trained"]
    if not share or row["rise_share"] == share:
        return ""
    return f"{float(share):.2f} of trained SPON's" if is_number(share) else "SPON not comparable"


def _apart(share: float, aim: float) -> str:
    """A share to two decimals, or to three where two would not tell it from what was aimed at."""
    return f"{share:.2f}" if f"{share:.2f}" != f"{aim:.2f}" else f"{share:.3f}"


def _points(row: Row, pattern: str) -> str:
    if not row["average_minus_published"]:
        return ""
    return pattern.format(*(float(row[f"average_minus_published{end}"]) for end in ("", "_low", "_high")))


def _kind(row: Row) -> str:
    return "lightly trained" if row["trained"] == "yes" else "training-free"


def _aim(row: Row) -> tuple[str, str]:
    return f"{float(row['sparsity']):.0%}", f"{float(row['aim']):.2f}"


def _text(row: Row, rows: list[Row]) -> str:
    """What the calibration text is, and its tokens, which cells of any aim on it tell."""
    alike = [other["calibration_tokens"] for other in rows if other["calibration"] == row["calibration"]]
    tokens = next(filter(None, alike), None)
    amount = NOT_MEASURED if tokens is None else f"{int(tokens):,} tokens"
    return f"{TEXTS[row['calibration']]}, {amount}"
