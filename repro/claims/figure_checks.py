"""Checks of what the papers read off their figures, against the CSV files of ours."""

from __future__ import annotations

from collections.abc import Callable

from ..embedded.names import EMBEDDED
from ..figures.plots import mismatch
from .checks import Finding
from .evidence import Evidence, Row
from .printed import Claim, Claims

Observation = Callable[[Claim, list[Row]], tuple[bool, str]]
"""Whether the rows of one model show what is claimed, and in words what they show."""


def check_mismatch(claim: Claim, claims: Claims, evidence: Evidence) -> Finding:
    """Ranks by E|x| do not follow ranks by norm: no rank correlation reaches `tolerance.correlation`."""
    return _check(claim, evidence, "figure2", _unaligned)


def check_turns(claim: Claim, claims: Claims, evidence: Evidence) -> Finding:
    """Sensitivity is not monotonic over the blocks: see `turn`."""
    return _check(claim, evidence, "figure3", _turning)


def _check(claim: Claim, evidence: Evidence, figure: str, observe: Observation) -> Finding:
    """Decided by the models that the claim names, all of them; the embedded ones are told beside it."""
    large = _by_model(claim, evidence.table(f"paper/figures/{figure}"))
    small = _by_model(claim, evidence.table(f"figures/{figure}"))
    embedded = "; ".join(observe(claim, rows)[1] for model, rows in small.items() if model in EMBEDDED)
    found = {model: observe(claim, large[model]) for model in claim.models if model in large}
    measured = "; ".join(text for _, text in found.values())
    if absent := [model for model in claim.models if model not in large]:
        return Finding(measured=measured, obstacle=f"no {figure} of {', '.join(absent)}", embedded=embedded)
    contrary = [model for model, (agrees, _) in found.items() if not agrees]
    obstacle = f"not so on {', '.join(contrary)}" if contrary else ""
    return Finding(measured=measured, agrees=not contrary, obstacle=obstacle, embedded=embedded)


def _by_model(claim: Claim, rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        if "sparsity" not in row or float(row["sparsity"]) == claim.sparsity:
            found.setdefault(row["model"], []).append(row)
    return found


def _unaligned(claim: Claim, rows: list[Row]) -> tuple[bool, str]:
    projections = dict.fromkeys(row["projection"] for row in rows)
    found = {name: mismatch([row for row in rows if row["projection"] == name])[0] for name in projections}
    shown = ", ".join(f"{name} {correlation:+.2f}" for name, correlation in found.items())
    agrees = max(found.values()) < claim.section["tolerance"]["correlation"]
    return agrees, f"{rows[0]['model']} block {rows[0]['block']}: rank correlation {shown}"


def _turning(claim: Claim, rows: list[Row]) -> tuple[bool, str]:
    model = rows[0]["model"]
    block = turn(rows)
    if block is None:
        return False, f"{model}: no turn beyond the intervals"
    return True, f"{model} turns at block {block} (×{float(rows[block]['perplexity_ratio']):.3f})"


def turn(rows: list[Row]) -> int | None:
    """The block whose 95 % interval lies furthest above, or below, that of some block before and one after it.

    `rows`: the perplexity ratios of one model at one sparsity, by block. None where there is no such block.
    """
    low, high = ([float(row[f"perplexity_ratio_{end}"]) for row in rows] for end in ("low", "high"))
    margins = {}
    for block in range(1, len(rows) - 1):
        above = low[block] - max(min(high[:block]), min(high[block + 1 :]))
        below = min(max(low[:block]), max(low[block + 1 :])) - high[block]
        margins[block] = max(above, below)
    best = max(margins, key=margins.__getitem__, default=None)
    return best if best is not None and margins[best] > 0 else None


FIGURE_CHECKS: dict[str, Callable[[Claim, Claims, Evidence], Finding]] = {
    "mismatch": check_mismatch,
    "turns": check_turns,
}
