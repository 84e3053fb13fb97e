"""Every printed claim against what was measured: `python -m wisparse.repro.claims`.

Writes results/claims.md and results/claims.csv from conf/claims and what lies in results/.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ...method.errors import UserError
from ..configuration import REPOSITORY, mistakes_in_one_line
from ..records import write_text
from ..tables.csv_rows import csv_text
from ..tables.text import NOT_MEASURED, table_row
from .checks import CHECKS, Finding
from .evidence import Evidence
from .figure_checks import FIGURE_CHECKS
from .printed import Claim, Claims, load_claims
from .printed_rows import printed_kept

REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
NOT_DECIDED, INCONSISTENT = f"{NOT_MEASURED} here", "inconsistent in the paper itself"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, INCONSISTENT, NOT_DECIDED)
CSV_COLUMNS = (
    "id", "paper", "claim", "kind", "printed", "recomputed", "measured", "verdict", "reason", "command",
    "on_embedded_models", "source",
)  # fmt: skip


@dataclass(frozen=True)
class Verified:
    """A claim, what was found and the verdict."""

    claim: Claim
    finding: Finding
    printed: str

    @property
    def verdict(self) -> str:
        """Verdict; one from the paper's own numbers comes first, with the measurement shown beside it."""
        if self.finding.contradiction:
            return INCONSISTENT
        if self.finding.agrees is None:
            return NOT_DECIDED
        return REPRODUCED if self.finding.agrees else NOT_REPRODUCED

    @property
    def reason(self) -> str:
        """Why the verdict is not `reproduced`."""
        finding = self.finding
        if not finding.contradiction or finding.agrees is None:
            return finding.contradiction or finding.obstacle
        return f"{finding.contradiction}; measured: {finding.obstacle or 'within the tolerance'}"

    @property
    def command(self) -> str:
        """Command that would measure it; empty where it is measured or nothing here does."""
        possible = self.finding.agrees is None and not self.finding.obstacle.startswith("there is no")
        return self.claim.command if possible else ""

    def row(self) -> dict[str, str]:
        """Row of claims.csv."""
        claim, finding = self.claim, self.finding
        values = (
            claim.id, claim.paper, claim.sentence, claim.kind, self.printed, finding.recomputed,
            finding.measured, self.verdict, self.reason, self.command, finding.embedded, claim.source,
        )  # fmt: skip
        return dict(zip(CSV_COLUMNS, values, strict=True))


def verify(claims: Claims, evidence: Evidence) -> list[Verified]:
    """Check every claim. Raises UserError when a claim's kind is unknown or a record is damaged."""
    verified, checks = [], CHECKS | FIGURE_CHECKS
    for claim in claims:
        if claim.kind not in checks:
            raise UserError(f"conf/claims: {claim.id} is of kind {claim.kind}; known are {', '.join(checks)}")
        finding = checks[claim.kind](claim, claims, evidence)
        verified.append(Verified(claim, finding, _printed(claim, claims)))
    return verified


def _printed(claim: Claim, claims: Claims) -> str:
    if len(claim.printed) == 1:
        text = f"{next(iter(claim.printed.values())):g}"
    else:
        text = ", ".join(f"{name} {value:g}" for name, value in claim.printed.items())
    kept = printed_kept(claim, claims)
    return text if kept is None or claim.method == "dense" else f"{text} ({kept:.1f} % of dense)"


def claims_csv(verified: list[Verified]) -> str:
    """One row a claim."""
    return csv_text(CSV_COLUMNS, (entry.row() for entry in verified))


HEADER = """\
# What the papers print, checked

Made by `make verify-claims` from [conf/claims](../conf/claims) and the files beside this one.

- **reproduced**, **not reproduced**: measured at full size, and within the tolerance or not. Scores: the
  average within two standard errors of the measurement and every task within three. Shares and leads: the
  printed value in the 95 % interval, paired by item. Rates: within 5 % on the paper's own GPU; speed-ups: no
  more than 5 % below. Operations are computed from the architecture. What is read off a figure: on every
  model named, sensitivity turning by more than its 95 % intervals, rank correlations below 0.5.
- **inconsistent in the paper itself**: the paper's own numbers exclude it. Recomputed is what they give.
  Rounding and truncation to the printed digits are granted.
- **not measured here**: nothing that would decide it has been measured. Below each table stands what would.
- **On embedded models**: the analogous quantity on the models of 8 to 11 million parameters in this
  repository, for orientation. It decides nothing about models of 7 to 8 billion."""


def claims_markdown(verified: list[Verified]) -> str:
    """Counts of verdicts, then one table a paper."""
    papers = list(dict.fromkeys(entry.claim.paper for entry in verified))
    sections = [HEADER, _summary(verified, papers)]
    for paper in papers:
        sections.append(_paper(paper, [entry for entry in verified if entry.claim.paper == paper]))
    return "\n\n".join(sections) + "\n"


def _summary(verified: list[Verified], papers: list[str]) -> str:
    counts = Counter((entry.claim.paper, entry.verdict) for entry in verified)
    lines = [f"| Paper | {' | '.join(VERDICTS)} | claims |", "|---" + "|---:" * (len(VERDICTS) + 1) + "|"]
    for paper in papers:
        numbers = [counts[paper, verdict] for verdict in VERDICTS]
        lines.append(f"| {paper} | {' | '.join(map(str, numbers))} | {sum(numbers)} |")
    totals = [sum(counts[paper, verdict] for paper in papers) for verdict in VERDICTS]
    lines.append(f"| **all** | {' | '.join(f'**{total}**' for total in totals)} | **{sum(totals)}** |")
    return "\n".join(lines)


def _paper(paper: str, verified: list[Verified]) -> str:
    columns = ("Claim", "Printed", "Recomputed", "Measured", "Verdict", "Why", "On embedded models")
    sources = "; ".join(dict.fromkeys(entry.claim.source for entry in verified))
    lines = [f"## {paper}", "", f"{sources}.", ""]
    lines += [table_row(columns), "| --- " * len(columns) + "|"]
    for entry in verified:
        row = entry.row()
        verdict = row["verdict"] if row["verdict"] == NOT_DECIDED else f"**{row['verdict']}**"
        cells = [row["claim"], row["printed"], row["recomputed"], row["measured"], verdict, row["reason"]]
        lines.append(table_row([*cells, row["on_embedded_models"] or NOT_MEASURED]))
    return "\n".join([*lines, *_commands(verified)])


def _commands(verified: list[Verified]) -> list[str]:
    """Commands that would measure a paper's claims, one for all that differ in model, method, sparsity."""
    patterns = dict.fromkeys(entry.claim.section["command"] for entry in verified if entry.command)
    if not patterns:
        return []
    words = {"model": "MODEL", "methods": "dense,METHOD", "share": "SPARSITY"}
    lines = ["", "What would measure them:", "", "```bash"]
    for pattern in patterns:
        lines.append(pattern.format(**words))
        if "experiment_name=" in pattern:
            lines.append(keeping_command(pattern.split("experiment_name=")[1]))
    return [*lines, "```"]


def keeping_command(experiment: str) -> str:
    """Command that puts an experiment's records where claims are looked up, and its table beside them."""
    name = experiment.removeprefix("paper_")
    table = "table2" if name == "table2" else "table1"
    return (
        f"python -m wisparse.repro.tables {table} --records outputs/{experiment} --output results/paper/{name} "
        f"--keep-records results/records/{experiment}.tar.xz"
    )


@mistakes_in_one_line()
def main() -> None:
    """Check every claim and write claims.md and claims.csv."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--results", type=Path, default=REPOSITORY / "results", help="folder with the results")
    results = parser.parse_args().results
    if not results.is_dir():
        raise UserError(f"--results {results} is no folder; give the one that holds the tables")
    verified = verify(load_claims(), Evidence(results))
    write_text(results / "claims.md", claims_markdown(verified))
    write_text(results / "claims.csv", claims_csv(verified))
    for verdict, count in Counter(entry.verdict for entry in verified).most_common():
        print(f"{count:4d} {verdict}")
    print(f"written: {results / 'claims.md'} and {results / 'claims.csv'}")


if __name__ == "__main__":
    main()
