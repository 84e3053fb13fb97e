"""Checks of printed numbers against each other: averages, multiples of one item, exchanged columns."""

from __future__ import annotations

from statistics import fmean

from ...method.errors import UserError
from .printed import AVERAGE, Claim, Claims


def row_average(claim: Claim) -> float:
    """Mean of the printed tasks, in percent."""
    return fmean(value for name, value in claim.printed.items() if name != AVERAGE)


def contradictions(claim: Claim, claims: Claims) -> list[str]:
    """Contradictions in a printed row of scores; `rounding` (points) is granted."""
    found = [_wrong_average(claim), *_impossible_shares(claim), _exchanged_columns(claim, claims)]
    return [text for text in found if text]


def _wrong_average(claim: Claim) -> str:
    printed, computed = claim.printed[AVERAGE], row_average(claim)
    if abs(printed - computed) <= claim.section["rounding"]:
        return ""
    return f"the printed average {printed:g} is not the {computed:.3f} of its row"


def _impossible_shares(claim: Claim) -> list[str]:
    """Scores that no number of right answers gives."""
    found = []
    for task, items in claim.section.get("items", {}).items():
        score = claim.printed[task]
        nearest = 100 * round(score * items / 100) / items
        if abs(score - nearest) > claim.section["rounding"]:
            found.append(f"{task} {score:g} is not a multiple of 1/{items} (nearest {nearest:.2f})")
    return found


def _exchanged_columns(claim: Claim, claims: Claims) -> str:
    """Whether a row lies nearer, by `swap.points`, to the row it resembles once two columns are exchanged."""
    swap = claim.section.get("swap")
    if swap is None or claim.method != swap["method"]:
        return ""
    like = claims.row(claim.paper, claim.section["id"], claim.model, swap["like"], claim.sparsity)
    one, other = swap["columns"]
    printed = abs(claim.printed[one] - like.printed[one]) + abs(claim.printed[other] - like.printed[other])
    exchanged = abs(claim.printed[other] - like.printed[one]) + abs(claim.printed[one] - like.printed[other])
    if printed - exchanged <= swap["points"]:
        return ""
    return (
        f"{one} and {other} seem exchanged: {printed:.2f} points from {swap['like']} as printed, "
        f"{exchanged:.2f} the other way round"
    )


def printed_kept(claim: Claim, claims: Claims) -> float | None:
    """The row's average as a percentage of the dense row's; printed averages, as the paper takes them."""
    if AVERAGE not in claim.printed:
        return None
    try:
        dense = claims.row(claim.paper, claim.section["id"], claim.model, "dense", 0.0)
    except UserError:  # some quotations leave the dense row out
        return None
    return 100 * claim.printed[AVERAGE] / dense.printed[AVERAGE]


def printed_lead(claim: Claim, claims: Claims, model: str) -> float:
    """Average of the claim's method minus that of its strongest rival on a model, both from their rows."""
    table, rivals = claim.section["of"], claim.section["rivals"]
    mine, *others = (
        row_average(claims.row(claim.paper, table, model, method, claim.sparsity))
        for method in (claim.method, *rivals)
    )
    return mine - max(others)
