"""One check for each kind of claim: against the paper's own numbers, and against what was measured."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from ...method.errors import UserError
from ..embedded.names import EMBEDDED
from ..measured.cells import MeasuredCell
from ..measured.paired_bootstrap import Interval
from ..models.architecture import decode_tflops
from ..tables.table_data import TableData
from .evidence import Evidence, Row, paired
from .printed import AVERAGE, Claim, Claims
from .printed_rows import contradictions, printed_kept, printed_lead, row_average


@dataclass(frozen=True)
class Finding:
    """Result of a check; texts are empty where there is nothing to say."""

    contradiction: str = ""
    """Contradiction of the claim by the paper's own numbers."""
    recomputed: str = ""
    """The printed number from the paper's other numbers."""
    measured: str = ""
    agrees: bool | None = None
    """Whether what was measured lies within the tolerance; None where nothing decides it."""
    obstacle: str = ""
    """Why nothing decides it."""
    embedded: str = ""
    """The analogous quantity on the embedded models."""


def check_scores(claim: Claim, claims: Claims, evidence: Evidence) -> Finding:
    """A row of a table: its average within `tolerance.average` standard errors, every task within `.task`."""
    contradiction = "; ".join(contradictions(claim, claims))
    embedded = _embedded_kept(claim, evidence)
    recomputed = f"{row_average(claim):.2f}"
    cell = evidence.accuracy(claim, claim.model, claim.method, claim.sparsity)
    if isinstance(cell, str):
        return Finding(contradiction, recomputed, obstacle=cell, embedded=embedded)
    tasks = {name: cell.record["tasks"][name] for name in claim.section["columns"]}
    errors = {name: 100 * task["stderr"] for name, task in tasks.items()}
    values = {name: 100 * task["value"] for name, task in tasks.items()}
    errors[AVERAGE] = math.hypot(*errors.values()) / len(tasks)
    values[AVERAGE] = sum(values.values()) / len(tasks)
    tolerance = claim.section["tolerance"]
    outside = [
        name
        for name, value in values.items()
        if abs(value - claim.printed[name])
        > errors[name] * (tolerance["average"] if name == AVERAGE else tolerance["task"])
    ]
    measured = ", ".join(f"{name} {value:.2f} ± {errors[name]:.2f}" for name, value in values.items())
    obstacle = f"outside the tolerance: {', '.join(outside)}" if outside else ""
    return Finding(contradiction, recomputed, measured, not outside, obstacle, embedded)


def check_kept(claim: Claim, claims: Claims, evidence: Evidence) -> Finding:
    """A share of the dense average: within the 95 % interval, paired by item, of what was measured."""
    row = claims.row(claim.paper, claim.section["of"], claim.model, claim.method, claim.sparsity)
    printed, rounding = claim.printed["kept"], claim.own["rounding"]
    computed = printed_kept(row, claims)
    if computed is None:
        raise UserError(f"conf/claims: {row.id} has no dense row beside it")
    wrong = abs(computed - printed) > rounding
    contradiction = f"its rows give {computed:.2f} %" if wrong else ""
    found = _paired_interval(row, evidence, [claim.method], lambda data, cells: data.kept_interval(cells[0]))
    return _within(contradiction, f"{computed:.2f}", found, printed, rounding, _embedded_kept(row, evidence))


def check_lead(claim: Claim, claims: Claims, evidence: Evidence) -> Finding:
    """Points above the strongest rival: within the 95 % interval, paired by item, of what was measured."""
    table = claim.section["of"]
    models = dict.fromkeys(
        row.model
        for row in claims
        if row.paper == claim.paper and row.section["id"] == table and row.method == claim.method
    )
    leads = {model: printed_lead(claim, claims, model) for model in models}
    printed, rounding = claim.printed["lead"], claim.own["rounding"]
    own = leads[claim.model]
    contradiction = f"its rows give {own:+.2f}" if abs(own - printed) > rounding else ""
    recomputed = ", ".join(f"{model} {lead:+.2f}" for model, lead in leads.items())
    row = claims.row(claim.paper, table, claim.model, claim.method, claim.sparsity)
    methods = [claim.method, *claim.section["rivals"]]

    def lead(data: TableData, cells: list[MeasuredCell]) -> Interval | None:
        rival = max(cells[1:], key=lambda cell: cell.record["average"])
        return data.average_difference(cells[0], rival)

    found = _paired_interval(row, evidence, methods, lead)
    return _within(contradiction, recomputed, found, printed, rounding, _embedded_lead(claim, evidence))


def _paired_interval(
    row: Claim,
    evidence: Evidence,
    methods: list[str],
    find: Callable[[TableData, list[MeasuredCell]], Interval | None],
) -> Interval | str:
    """An interval over the dense cell and those of `methods`, or why there is none."""
    cells = []
    for method in ("dense", *methods):
        cell = evidence.accuracy(row, row.model, method, row.sparsity)
        if isinstance(cell, str):
            return cell
        cells.append(cell)
    try:
        return find(paired(cells), cells[1:]) or "nothing to compare"
    except UserError as error:
        return str(error)


def _within(
    contradiction: str, recomputed: str, found: Interval | str, printed: float, rounding: float, embedded: str
) -> Finding:
    if isinstance(found, str):
        return Finding(contradiction, recomputed, obstacle=found, embedded=embedded)
    measured = f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
    agrees = found.low - rounding <= printed <= found.high + rounding
    obstacle = "" if agrees else "outside the 95 % interval"
    return Finding(contradiction, recomputed, measured, agrees, obstacle, embedded)


def check_rate(claim: Claim, claims: Claims, evidence: Evidence) -> Finding:
    """Tokens a second on the claim's device: within `tolerance.share` of the printed rate."""
    printed, share = claim.printed["rate"], claim.section["tolerance"]["share"]
    return _speed(claim, evidence, "tok_s", lambda value: abs(value - printed) <= share * printed, "", "")


def check_speedup(claim: Claim, claims: Claims, evidence: Evidence) -> Finding:
    """Speed-up over dense on the claim's device: at least the printed one less `tolerance.share`."""
    printed, share = claim.printed["speedup"], claim.section["tolerance"]["share"]
    contradiction = recomputed = ""
    if "rates" in claim.own:
        dense, sparse = claim.own["rates"]
        recomputed = f"{sparse / dense:.3f}"
        if abs(sparse / dense - printed) > 0.001:
            contradiction = (
                f"its own rates on {claim.model}, {dense:g} → {sparse:g} tok/s, give "
                f"{100 * (sparse / dense - 1):.1f} %{_same_number_elsewhere(claim, claims)}"
            )
    enough = (1 - share) * printed
    return _speed(claim, evidence, "speedup", lambda value: value >= enough, contradiction, recomputed)


def _same_number_elsewhere(claim: Claim, claims: Claims) -> str:
    """Sentence on another model of which the paper prints this very number; empty where there is none."""
    owners = [
        other.model
        for other in claims
        if other.paper == claim.paper
        and other.kind == claim.kind
        and other.printed == claim.printed
        and other.models != claim.models
    ]
    return f"; the number is that of {', '.join(owners)}" if owners else ""


def _speed(
    claim: Claim,
    evidence: Evidence,
    column: str,
    agrees: Callable[[float], bool],
    contradiction: str,
    recomputed: str,
) -> Finding:
    unit = "×" if column == "speedup" else " tok/s"
    digits = 3 if column == "speedup" else 1
    rows = sorted(evidence.speeds(claim, claim.models), key=lambda row: -float(row[column]))
    measured = ", ".join(
        f"{row['model']} {float(row[column]):.{digits}f}{unit} on {row['device']}" for row in rows
    )
    embedded = "" if claim.method == "dense" else _embedded_speed(claim, evidence)
    deciding = [row for row in rows if any(_is_device(row, name) for name in claim.section["devices"])]
    if deciding:
        fits = agrees(float(deciding[0][column]))
        obstacle = "" if fits else "outside the tolerance"
        return Finding(contradiction, recomputed, measured, fits, obstacle, embedded)
    device = " or ".join(claim.section["devices"]) or "the paper's own CPU"
    obstacle = f"{'measured elsewhere, not on' if rows else 'needs'} {device}"
    return Finding(contradiction, recomputed, measured, obstacle=obstacle, embedded=embedded)


def _is_device(row: Row, name: str) -> bool:
    """Whole words: an H200 is no H20, an A100-SXM4-80GB is an A100."""
    return re.match(rf"{re.escape(name)}\b", row["device"]) is not None


def check_tflops(claim: Claim, claims: Claims, evidence: Evidence) -> Finding:
    """Operations follow from the architecture alone: within `tolerance.value` TFLOPs."""
    computed = decode_tflops(claim.model, claim.section["tokens"], claim.sparsity)
    agrees = abs(computed - claim.printed["tflops"]) <= claim.section["tolerance"]["value"]
    return Finding(measured=f"{computed:.3f} from the architecture", agrees=agrees)


def check_unmeasured(claim: Claim, claims: Claims, evidence: Evidence) -> Finding:
    """Check of a claim that no command here can measure; the file says why."""
    embedded = ""
    if claim.kind == "average":
        embedded = _embedded_kept(claim, evidence)
    elif claim.kind == "perplexity":
        rows = evidence.embedded_rows("table1", claim.method, claim.sparsity)
        ratios = [f"{model} ×{float(row['perplexity_ratio']):.3f}" for model, row in rows.items()]
        embedded = f"perplexity over dense: {', '.join(ratios)}" if ratios else ""
    return Finding(obstacle=claim.section["reason"], embedded=embedded)


def check_zeros(claim: Claim, claims: Claims, evidence: Evidence) -> Finding:
    """Zeros of models that no command here trains, beside what the same recipe gives at the embedded size."""
    rows = {row["model"]: row for row in evidence.table("relu/models")}
    found = [
        f"{name} {float(row['zeros']):.1%} at {float(row['over_control']):.3f} of its control's perplexity"
        for name, row in rows.items()
        if name in claim.section["trained"]
    ]
    return Finding(obstacle=claim.section["reason"], embedded=", ".join(found))


def _embedded_kept(claim: Claim, evidence: Evidence) -> str:
    if claim.method == "dense":
        return ""
    rows = evidence.embedded_rows(claim.section.get("embedded", "table1"), claim.method, claim.sparsity)
    kept = [f"{model} {float(row['kept']):.1f}" for model, row in rows.items()]
    return f"{', '.join(kept)} % of dense" if kept else ""


def _embedded_lead(claim: Claim, evidence: Evidence) -> str:
    mine, *rivals = (
        evidence.embedded_rows("table1", method, claim.sparsity)
        for method in (claim.method, *claim.section["rivals"])
    )
    leads = []
    for model, row in mine.items():
        averages = [float(rows[model]["average"]) for rows in rivals if model in rows]
        if len(averages) == len(rivals):
            leads.append(f"{model} {float(row['average']) - max(averages):+.2f}")
    return f"{', '.join(leads)} points" if leads else ""


def _embedded_speed(claim: Claim, evidence: Evidence) -> str:
    rows = evidence.speeds(claim, EMBEDDED)
    found = [f"{row['model']} {float(row['speedup']):.2f}× on {row['device']}" for row in rows]
    return ", ".join(found)


CHECKS: dict[str, Callable[[Claim, Claims, Evidence], Finding]] = {
    "scores": check_scores,
    "kept": check_kept,
    "lead": check_lead,
    "rate": check_rate,
    "speedup": check_speedup,
    "tflops": check_tflops,
    "average": check_unmeasured,
    "perplexity": check_unmeasured,
    "unmeasured": check_unmeasured,
    "zeros": check_zeros,
}
