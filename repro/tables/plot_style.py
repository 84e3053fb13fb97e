"""Style of all plots: colours, markers, and how a figure is written so that it reads on light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from ...method.errors import UserError

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
FONTS = ["DejaVu Sans", "Arial"]
"""Fonts that an SVG names at each of its texts, before any without serifs."""
PALETTE = 128
"""Colours of a PNG, shades of lines' edges included; the checkout holds dozens of plots."""
MARK = re.compile(r'<use [^>]*style="([^"]*)"/>')
"""A mark of a plot as matplotlib writes it."""
STROKE = re.compile(r'<path d="(?P<places>M[^"]*)"(?P<look> (?!id=)[^>]*fill: none[^>]*)/>')
"""A line of a plot, or an error bar."""
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
DRAWN = {
    "circle", "clipPath", "defs", "desc", "ellipse", "g", "image", "line", "linearGradient", "marker",
    "metadata", "path", "pattern", "polygon", "polyline", "radialGradient", "rect", "stop", "style", "svg",
    "symbol", "text", "textPath", "title", "tspan", "use",
}  # fmt: skip
"""Elements of an SVG that are drawn, or say how."""
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor")


def line_style(place: int) -> dict[str, str]:
    """Colour and marker of the line in this place of a legend: no two of a hundred lines share both."""
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}


@contextmanager
def ink(name: str) -> Iterator[None]:
    """Context in which figures are drawn and written in INK; `name` tells their SVG's ids from others'."""
    import matplotlib

    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9, "legend.frameon": False}
    settings["font.sans-serif"] = FONTS
    with matplotlib.rc_context({**dict.fromkeys(INKED, INK), **settings}):
        yield


def write_figure(figure: Figure, path: Path) -> list[Path]:
    """Write PATH.png and PATH.svg without a background; the same figure gives the same SVG."""
    written = [path.with_name(f"{path.name}.{suffix}") for suffix in ("png", "svg")]
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(written[0], dpi=150, transparent=True)
    reduce_colours(written[0])
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata=NO_METADATA)
    written[1].write_text(compact_svg(text.getvalue()), encoding="utf-8", newline="\n")
    return written


def compact_svg(svg: str) -> str:
    """An SVG with its places in hundredths of a point, where matplotlib writes millionths.

    Indentation goes, and turns by nothing, a tenth of the room; a path is one line. Names of groups go, groups
    that say nothing, and what is said of every mark of a group or every bar of a line stands once: a third.
    """

    def rounded(found: re.Match[str]) -> str:
        places = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", found[0])
        return re.sub(r"\s*\n\s*", " ", places)

    svg = re.sub(r' (?:d|x|y)="[^"]*"', rounded, svg)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*\)"', "", svg)
    svg = re.sub(r"^ +", "", svg, flags=re.MULTILINE)
    lines = _plain_groups(_without_names(svg).split("\n"))
    return "\n".join(_joined_strokes(lines))


def _without_names(svg: str) -> str:
    """An SVG whose groups have no names: nothing refers to them."""
    return re.sub(r'<g id="[^"]*"', "<g", svg)


def _plain_groups(lines: list[str]) -> list[str]:
    """Lines of an SVG, without groups that say nothing, and with the style of a group's marks said once.

    A style is handed down to what a group holds, but for its opacity, which is then one of all together.
    """
    kept: list[str] = []
    opened: list[int] = []
    for line in lines:
        if re.fullmatch(r"<g(?: [^>]*)?>", line):
            opened.append(len(kept))
        elif line == "</g>" and opened:
            start = opened.pop()
            styles = {found[1] if (found := MARK.fullmatch(inside)) else "" for inside in kept[start + 1 :]}
            style = styles.pop() if len(styles) == 1 and len(kept) > start + 2 else ""
            if style and not re.search(r"(?:^|[; ])opacity:", style) and "style=" not in kept[start]:
                kept[start:] = [
                    f'{kept[start][:-1]} style="{style}">',
                    *(inside.replace(f' style="{style}"', "") for inside in kept[start + 1 :]),
                ]
            if kept[start] == "<g>":
                del kept[start]
                continue
        kept.append(line)
    return kept


def _joined_strokes(lines: list[str]) -> list[str]:
    """Lines of an SVG in which strokes behind each other that look alike, as of error bars, are one path."""
    kept: list[str] = []
    for line in lines:
        stroke, last = STROKE.fullmatch(line), STROKE.fullmatch(kept[-1]) if kept else None
        if stroke and last and stroke["look"] == last["look"] and "opacity" not in stroke["look"]:
            kept[-1] = f'<path d="{last["places"].rstrip()} {stroke["places"]}"{stroke["look"]}/>'
        else:
            kept.append(line)
    return kept


def reduce_colours(path: Path) -> None:
    """Write a PNG anew in `PALETTE` colours and shades of transparency: less than a third of the size."""
    from PIL import Image

    with Image.open(path) as image:
        few = image.convert("RGBA").quantize(PALETTE, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def inline_svg(text: str) -> str:
    """An SVG for a page: in the page's text colour, without the prolog, its groups without names.

    Groups bear the same names in every plot, and on one page names must differ.
    """
    return _without_names(text[text.index("<svg") :]).replace(INK, "currentColor")


def stored_svg(path: Path) -> str:
    """A stored plot for a page. Raises UserError for one that is no SVG, or could do more than be looked at."""
    try:
        text = path.read_text(encoding="utf-8")
        if re.search(r"<!(?!--|DOCTYPE svg PUBLIC[^\[>]*>)", text):
            raise UserError(f"{path} declares more than a drawing; make its table again")
        parts = list(ElementTree.fromstring(text).iter())
    except (UnicodeDecodeError, ElementTree.ParseError) as error:
        raise UserError(f"{path} is no readable SVG ({error}); make its table again") from error
    for part in parts:
        name = part.tag.rpartition("}")[2]
        acts = any(_acts(*attribute) for attribute in part.attrib.items())
        if name not in DRAWN or acts or (name == "style" and re.search(r"@import|url\(", part.text or "")):
            raise UserError(f"{path} holds a '{name}' that is no drawing; make its table again")
    return inline_svg(text)


def _acts(name: str, value: str) -> bool:
    """Whether an attribute of an SVG is a script, or fetches something from elsewhere."""
    own = name.rpartition("}")[2].lower()
    if own.startswith("on"):
        return True
    if own in ("href", "src"):
        return not value.startswith(("#", "data:image/png;base64,"))
    return bool(re.search(r"url\((?!#)", value) or "javascript:" in value.lower())
