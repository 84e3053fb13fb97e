"""The sections of the report: which files of results/ each shows, in which order, and what would measure it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt

from ..tables.csv_rows import read_rows
from ..tables.make import TABLES
from ..tables.plot_style import stored_svg
from .plots import accuracy_plots, colours, data_address, figure_files, paper_figures
from .tables import DisplayTable, display_table


def _declared(name: str) -> tuple[str, str, str]:
    """Id, title and command of a table as it declares them."""
    return name, TABLES[name].title, TABLES[name].command


SECTIONS = (
    ("real", "The real model, SmolLM2-135M", TABLES["real"].command),
    ("real-figures", "WiSparse's figures on the real model", "make reproduce-figures PROFILE=real"),
    _declared("table1"),
    ("paper", "Tables of the 7-8B models", "make reproduce-table1 PROFILE=paper"),
    _declared("table2"),
    _declared("frontier"),
    _declared("given_loss"),
    ("quantised", "Sparse and quantised on the embedded models", TABLES["quantised"].command),
    _declared("heads"),
    (
        "left_over",
        "Allocations and budgets of tokens that were tried",
        "python -m wisparse.repro.studies.left_over",
    ),
    (
        "quantised_plans",
        "Plans and quantised weights: which is made on which",
        "python -m wisparse.repro.studies.quantised_plans",
    ),
    ("frontier_long", "The same with more calibration text", "python repro/run.py experiment=frontier_long"),
    ("scaling", "Sparsity and size", "python repro/run.py experiment=scaling"),
    ("relu", "Models with true zeros", "make train-relu, then the commands in conf/experiment/relu.yaml"),
    ("questions", TABLES["question"].title, TABLES["question"].command),
    _declared("speed"),
    ("kernels", "Kernel speed", "make reproduce-speed"),
    ("steps", "A whole decode step by bits of the weights", "python -m wisparse.kernels.bench.gpu_step"),
    ("prompts", "Prompts on weights in few bits", "python -m wisparse.repro.speed.prompt_speed"),
    ("step_biases", "What biases cost a decode step", "python -m wisparse.kernels.bench.gpu_biases"),
    ("cpu_steps", "A decode step on a CPU beside llama.cpp", "python -m wisparse.repro.speed.cpu_steps"),
    (
        "predicted_neurons",
        "Decode steps with neurons that signs predict",
        "python -m wisparse.kernels.bench.predicted_neurons",
    ),
    (
        "proxies",
        "Decode steps with proxies, routers, bounds on k and rotated bases",
        "python -m wisparse.kernels.bench.proxies",
    ),
    ("heads_speed", "Speed of attention over chosen heads", "python -m wisparse.kernels.bench.gpu_heads"),
    ("search-cost", "What the searches cost at full size", "make reproduce-search-cost"),
    _declared("full_size"),
    ("process-scaling", "One cell on several processes", "python -m wisparse.repro.cost.process_scaling"),
    ("figures", "WiSparse's figures on the embedded models", "make reproduce-figures PROFILE=full"),
    ("paper-figures", "WiSparse's figures on the 7-8B models", "make reproduce-figures PROFILE=paper"),
    ("claims", "What the papers print, checked", "make verify-claims"),
)
"""Id, title, and what would measure it. A section of one table shows the CSV of its id."""
FOLDERS = ("real", "paper", "relu", "questions")
"""Sections that show every table of a folder, each with its own notes and plot."""
FIRST = (
    "table1",
    "method",
    "method_text",
    "frontier",
    "frontier_english",
    "table2",
    "quantised",
    "quantised_english",
    "models",
    "given_loss",
    "readings",
)
"""Tables of a folder that come first, in this order; the others follow by name."""
UNTITLED = {
    "massive": "Massive activations of the first token",
    "massive_needs": "What massive activations and first tokens need",
    "massive_needs_entries": "Massive entries, site by site",
    "settings_tried": "Settings that were tried",
}
"""Titles of tables without a page of their own."""
RELATIVE_LINK = re.compile(r"\]\((?!\w+:|#)([^)]+)\)")
PLOTTED = ("speed", "kernels", "frontier", "quantised", "scaling")
"""Sections whose plots lie beside their tables."""


@dataclass(frozen=True)
class Part:
    """A table with its title, the file it comes from, how to read it, and its plot as SVG."""

    table: DisplayTable
    title: str = ""
    file: str = ""
    notes: str = ""
    plot: str = ""


@dataclass
class Section:
    """A part of the page; `found` says whether there is anything to show."""

    id: str
    title: str
    command: str
    notes: str = ""
    parts: list[Part] = field(default_factory=list)
    plots: dict[str, str] = field(default_factory=dict)
    legend: dict[str, str] = field(default_factory=dict)
    figures: list[tuple[str, str]] = field(default_factory=list)
    wide: bool = False
    """Whether each plot takes the whole width."""

    @property
    def found(self) -> bool:
        """Whether anything was measured."""
        return bool(self.parts or self.plots or self.figures)


def read_sections(results: Path) -> list[Section]:
    """Every section, filled from the files of the folder."""
    sections = {name: Section(name, title, command) for name, title, command in SECTIONS}
    for name in sections.keys() - {"claims", *FOLDERS}:
        if rows := read_rows(results / f"{name}.csv"):
            sections[name].parts.append(Part(display_table(name, f"{name}-rows", rows)))
            sections[name].notes = _notes(results / f"{name}.md", results)
    if rows := read_rows(results / "table1.csv"):
        sections["table1"].plots = accuracy_plots(rows)
        sections["table1"].legend = colours(rows)
    for name in FOLDERS:
        sections[name].parts = [_part(name, path, results) for path in _ordered((results / name).glob("*.csv"))]
    claims = read_rows(results / "claims.csv")
    for paper in dict.fromkeys(row["paper"] for row in claims):
        name = f"claims-{''.join(letter for letter in paper.lower() if letter.isalnum())}"
        rows = [row for row in claims if row["paper"] == paper]
        sections["claims"].parts.append(Part(display_table("claims", name, rows), paper))
    sections["claims"].notes = _notes(results / "claims.md", results)
    places = {"figures": results, "real-figures": results / "real", "paper-figures": results / "paper"}
    for name, folder in places.items():
        sections[name].plots = paper_figures(folder / "figures")
        sections[name].wide = True
        sections[name].notes = _notes(folder / "figures.md", results)
    for path in figure_files(results):
        place = path.stem.split("-")[0]
        sections[place if place in PLOTTED else "figures"].figures.append(
            (path.stem.replace("-", " "), data_address(path))
        )
    return list(sections.values())


def _ordered(tables: Iterable[Path]) -> list[Path]:
    """Sections of FIRST before the others, which follow by name."""
    return sorted(
        tables, key=lambda path: (FIRST.index(path.stem) if path.stem in FIRST else len(FIRST), path.stem)
    )


def _part(section: str, path: Path, results: Path) -> Part:
    """A table of a folder, with what lies beside it under its name: a page and a plot."""
    page, plot = path.with_suffix(".md"), path.with_suffix(".svg")
    title = UNTITLED.get(path.stem, path.stem)
    if page.is_file():
        title = page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    table = display_table(path.stem, f"{section}-{path.stem}", read_rows(path))
    drawn = stored_svg(plot) if plot.is_file() else ""
    return Part(table, title, f"results/{section}/{path.name}", _notes(page, results), drawn)


def _notes(path: Path, results: Path) -> str:
    """The list above the first table or figure of a page, as HTML: how it was measured.

    Its links are as seen from `results`, where the report lies, and not from the page's own folder.
    """
    if not path.is_file():
        return ""
    above = re.split(r"\n(?:\||## )", path.read_text(encoding="utf-8"))[0]
    start = above.find("\n- ")
    if start < 0:
        return ""
    seen = RELATIVE_LINK.sub(
        lambda link: f"]({os.path.relpath(path.parent / link[1], results)})", above[start:]
    )
    return MarkdownIt("commonmark", {"html": False}).render(seen)
