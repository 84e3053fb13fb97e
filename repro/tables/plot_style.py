"""Style of all plots: colours, markers, and how a figure is written so that it reads on light and dark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9",
    "#7e57c2", "#8c564b", "#9e9d24", "#595959",
)  # fmt: skip
"""Okabe and Ito's first, told apart without colour vision; the first four stand out on black and on white."""
MARKERS = "osD^vP*X<>p"
INK = "#7a7a7a"
"""Colour of text and axes: contrast 4.3 to white and to a dark page; the report puts its own in its place."""
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor")


def line_style(place: int) -> dict[str, str]:
    """Colour and marker of the line in this place of a legend: no two of a hundred lines share both."""
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}


@contextmanager
def ink(name: str) -> Iterator[None]:
    """Context in which figures are drawn and written in INK; `name` tells their SVG's ids from others'."""
    import matplotlib

    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9, "legend.frameon": False}
    with matplotlib.rc_context({**dict.fromkeys(INKED, INK), **settings}):
        yield


def write_figure(figure: Figure, path: Path) -> list[Path]:
    """Write PATH.png and PATH.svg without a background; the same figure gives the same SVG."""
    written = [path.with_name(f"{path.name}.{suffix}") for suffix in ("png", "svg")]
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(written[0], dpi=150, transparent=True)
    figure.savefig(written[1], transparent=True, metadata=NO_METADATA)
    return written


def inline_svg(text: str) -> str:
    """An SVG for a page: in the page's text colour, without the prolog, its groups without names.

    Groups bear the same names in every plot, and on one page names must differ; nothing refers to them.
    """
    svg = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
    return svg.replace(INK, "currentColor")
