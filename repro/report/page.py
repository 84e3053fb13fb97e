"""One page of everything in results/: `python -m wisparse.repro.report` writes results/report.html.

It loads nothing from elsewhere: plots are inside, and it opens without a network.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt

from ...method.errors import UserError
from ..claims.verify import VERDICTS
from ..configuration import REPOSITORY, mistakes_in_one_line
from ..records import write_text
from ..tables.csv_rows import read_rows
from ..tables.make import TABLES
from ..tables.plot_style import stored_svg
from .plots import accuracy_plots, colours, data_address, figure_files, paper_figures
from .provenance import read_provenance
from .tables import DisplayTable, display_table

TEMPLATE = "report.html.jinja"


def _declared(name: str) -> tuple[str, str, str]:
    """Id, title and command of a table as it declares them."""
    return name, TABLES[name].title, TABLES[name].command


SECTIONS = (
    _declared("real"),
    ("real-figures", "WiSparse's figures on a real model", "make reproduce-figures PROFILE=real"),
    _declared("table1"),
    ("paper", "Tables of the 7-8B models", "make reproduce-table1 PROFILE=paper"),
    _declared("table2"),
    _declared("frontier"),
    _declared("given_loss"),
    _declared("quantised"),
    ("frontier_long", "The same with more calibration text", "python repro/run.py experiment=frontier_long"),
    ("questions", TABLES["question"].title, TABLES["question"].command),
    _declared("speed"),
    ("kernels", "Kernel speed", "make reproduce-speed"),
    ("search-cost", "What the searches cost at full size", "make reproduce-search-cost"),
    _declared("full_size"),
    ("process-scaling", "One cell on several processes", "python -m wisparse.repro.cost.process_scaling"),
    ("figures", "WiSparse's figures on the embedded models", "make reproduce-figures PROFILE=full"),
    ("paper-figures", "WiSparse's figures on the 7-8B models", "make reproduce-figures PROFILE=paper"),
    ("claims", "What the papers print, checked", "make verify-claims"),
)
"""Id, title, and what would measure it. A section of one table shows the CSV of its id."""
KINDS = {
    ("real", "table1"): "real",
    ("real", "frontier"): "real_frontier",
    ("real", "method_text"): "method",
}
"""Tables of folders whose files bear another name than the table that they are, by folder and file."""
SAME_TABLE = {"frontier_long": "frontier"}
"""Sections whose table is declared under another name."""
PLOTTED = ("speed", "kernels", "frontier", "quantised")
"""Sections whose plots lie beside their tables."""


@dataclass
class Section:
    """A part of the page; `found` says whether there is anything to show."""

    id: str
    title: str
    command: str
    notes: str = ""
    tables: list[tuple[str, DisplayTable]] = field(default_factory=list)
    plots: dict[str, str] = field(default_factory=dict)
    legend: dict[str, str] = field(default_factory=dict)
    figures: list[tuple[str, str]] = field(default_factory=list)
    wide: bool = False
    """Whether each plot takes the whole width."""

    @property
    def found(self) -> bool:
        """Whether anything was measured."""
        return bool(self.tables or self.plots or self.figures)


def read_sections(results: Path) -> list[Section]:
    """Every section, filled from the files of the folder."""
    sections = {name: Section(name, title, command) for name, title, command in SECTIONS}
    for name in sections.keys() - {"claims"}:
        if rows := read_rows(results / f"{name}.csv"):
            kind = SAME_TABLE.get(name, name)
            sections[name].tables.append(("", display_table(kind, f"{name}-rows", rows)))
            sections[name].notes = _notes(results / f"{name}.md")
    if rows := read_rows(results / "table1.csv"):
        sections["table1"].plots = accuracy_plots(rows)
        sections["table1"].legend = colours(rows)
    _fill_questions(sections["questions"], results / "questions")
    for name in ("real", "paper"):
        for path in sorted((results / name).glob("*.csv")):
            kind = KINDS.get((name, path.stem), path.stem)
            table = display_table(kind, f"{name}-{path.stem}", read_rows(path))
            sections[name].tables.append((path.stem, table))
    sections["real"].notes = _notes(results / "real" / "table1.md")
    claims = read_rows(results / "claims.csv")
    for paper in dict.fromkeys(row["paper"] for row in claims):
        name = f"claims-{''.join(letter for letter in paper.lower() if letter.isalnum())}"
        rows = [row for row in claims if row["paper"] == paper]
        sections["claims"].tables.append((paper, display_table("claims", name, rows)))
    sections["claims"].notes = _notes(results / "claims.md")
    places = {"figures": results, "real-figures": results / "real", "paper-figures": results / "paper"}
    for name, folder in places.items():
        sections[name].plots = paper_figures(folder / "figures")
        sections[name].wide = True
        sections[name].notes = _notes(folder / "figures.md")
    for path in figure_files(results):
        place = path.stem.split("-")[0]
        sections[place if place in PLOTTED else "figures"].figures.append(
            (path.stem.replace("-", " "), data_address(path))
        )
    for path in figure_files(results / "real"):
        sections["real-figures"].figures.append((path.stem, data_address(path)))
    return list(sections.values())


def _fill_questions(section: Section, folder: Path) -> None:
    """A table and a plot of every question in the folder."""
    section.wide = True
    for path in sorted(folder.glob("*.csv")):
        page, plot = path.with_suffix(".md"), path.with_suffix(".svg")
        title = page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        table = display_table("question", f"question-{path.stem}", read_rows(path))
        section.tables.append((title, table))
        if plot.is_file():
            section.plots[title] = stored_svg(plot)


def _notes(path: Path) -> str:
    """The list above the first table or figure of a page, as HTML: how it was measured."""
    if not path.is_file():
        return ""
    above = re.split(r"\n(?:\||## )", path.read_text(encoding="utf-8"))[0]
    start = above.find("\n- ")
    return "" if start < 0 else MarkdownIt("commonmark", {"html": False}).render(above[start:])


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


def main() -> None:
    """Write report.html from the files of a results folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--results", type=Path, default=REPOSITORY / "results", help="folder with the results")
    results = parser.parse_args().results
    with mistakes_in_one_line():
        write_text(results / "report.html", render(results))
    print(f"written: {results / 'report.html'}")


if __name__ == "__main__":
    main()
