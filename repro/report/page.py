"""One page of everything in results/: `python -m wisparse.repro.report` writes results/report.html.

It loads nothing from elsewhere: plots are inside, and it opens without a network.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...method.errors import UserError
from ..claims.verify import VERDICTS
from ..configuration import REPOSITORY, mistakes_in_one_line
from ..records import write_text
from ..tables.csv_rows import read_rows
from .provenance import read_provenance
from .sections import read_sections

TEMPLATE = "report.html.jinja"


def render(results: Path) -> str:
    """The page. Raises UserError when the folder holds nothing to show, or a record is damaged."""
    sections = read_sections(results)
    if not any(section.found for section in sections):
        raise UserError(f"{results} holds no results; run `make reproduce-table1 PROFILE=full` first")
    claims = read_rows(results / "claims.csv")
    counts = Counter(row["verdict"] for row in claims)
    verdicts: dict[str, Any] = {verdict: counts[verdict] for verdict in VERDICTS} if claims else {}
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(TEMPLATE).render(
        sections=sections, provenance=read_provenance(results), verdicts=verdicts, claims=len(claims)
    )


@mistakes_in_one_line()
def main() -> None:
    """Write report.html from the files of a results folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--results", type=Path, default=REPOSITORY / "results", help="folder with the results")
    results = parser.parse_args().results
    write_text(results / "report.html", render(results))
    print(f"written: {results / 'report.html'}")


if __name__ == "__main__":
    main()
