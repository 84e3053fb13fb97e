"""A CSV that is damaged, and a plot that is more than a drawing, are named in one line."""

from __future__ import annotations

import pytest
from wisparse.method.errors import UserError
from wisparse.repro.report.tables import display_table
from wisparse.repro.tables.csv_rows import csv_text, read_rows
from wisparse.repro.tables.plot_style import compact_svg, stored_svg

from ...conftest import ROOT

WHOLE = csv_text(("model", "value"), [{"model": "é, a", "value": 1}, {"model": "b"}])


def test_a_whole_csv_is_read_and_none_is_no_rows(tmp_path):
    path = tmp_path / "table.csv"
    assert read_rows(path) == []
    path.write_text(WHOLE, encoding="utf-8")
    assert read_rows(path) == [{"model": "é, a", "value": "1"}, {"model": "b", "value": ""}]
    with pytest.raises(UserError, match=r"table\.csv has no column 'claim'"):
        read_rows(path)[0]["claim"]


@pytest.mark.parametrize(
    "content",
    [b"", b"\xaf\x00\x01", WHOLE.encode()[:-1], b"model,value\na\n", b'model,value\n"a,b\n', b"model\na,b\n"],
)
def test_a_damaged_csv_is_named(tmp_path, content):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"table\.csv is (empty or cut off|no readable CSV)") as caught:
        read_rows(path)
    assert "\n" not in str(caught.value)


def drawing(inside: str, attributes: str = "", before: str = "") -> str:
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f"<?xml version='1.0'?>{before}<svg {space} {attributes}><g>{inside}</g></svg>"


@pytest.mark.parametrize(
    "text",
    [
        drawing("<script>alert(1)</script>"),
        drawing("<path d='M0 0' onload='alert(1)'/>"),
        drawing("", "onload='alert(1)'"),
        drawing("<foreignObject><b xmlns='http://www.w3.org/1999/xhtml'/></foreignObject>"),
        drawing("<a xlink:href='javascript:alert(1)'><text>x</text></a>"),
        drawing("<image xlink:href='https://example.org/x.png'/>"),
        drawing("<use xlink:href='https://example.org/x.svg#a'/>"),
        drawing("<style>@import 'https://example.org/x.css';</style>"),
        drawing("<path style='fill: url(https://example.org/x)'/>"),
        drawing("<animate attributeName='href'/>"),
        drawing("<text>&x;</text>", before="<!DOCTYPE svg [<!ENTITY x 'y'>]>"),
        "<svg><g></svg>",
        "no drawing at all",
    ],
)
def test_a_plot_that_is_more_than_a_drawing_is_refused(tmp_path, text):
    path = tmp_path / "plot.svg"
    path.write_text(text)
    with pytest.raises(UserError, match=r"plot\.svg .*make its table again"):
        stored_svg(path)


def test_the_plots_of_the_results_are_drawings():
    paths = [*(ROOT / "results" / "questions").glob("*.svg"), *(ROOT / "results" / "figures").glob("*.svg")]
    assert paths
    for path in paths:
        assert stored_svg(path).startswith("<svg")


@pytest.mark.parametrize("changed", ["modell,method", "model,method,more"])
def test_a_column_of_numbers_that_holds_something_else_is_one_line(tmp_path, changed):
    """A heading that was changed by hand: what has no place of its own is a task's score."""
    path = tmp_path / "table.csv"
    path.write_text(f"{changed}\n{','.join(['llama-mini'] * (changed.count(',') + 1))}\n")
    with pytest.raises(
        UserError, match=r"table\.csv (has 'llama-mini' for the number|has no column)"
    ) as caught:
        display_table("table1", "rows", read_rows(path))
    assert "\n" not in str(caught.value)


def test_places_of_an_svg_are_hundredths_of_a_point_and_its_texts_stay():
    drawn = '<path d="M 1.23456 -20.999999 L 3.5 4"/><use x="0.005001" y="7"/><text x="1.0009">0.12345</text>'
    kept = '<path d="M 1.23 -21.00 L 3.5 4"/><use x="0.01" y="7"/><text x="1.00">0.12345</text>'
    assert compact_svg(drawn) == kept


def test_an_svg_is_stored_without_indentation_and_without_turns_by_nothing():
    text = '<text x="1" transform="rotate(-0 52.3 226.5)">  a</text>'
    drawn = f'<g a="b">\n  <path d="M 1 2 \nL 3 4 \n"/>\n  {text}\n</g>'
    kept = '<g a="b">\n<path d="M 1 2 L 3 4 "/>\n<text x="1">  a</text>\n</g>'
    assert compact_svg(drawn) == kept
    turned = '<text transform="rotate(-90 1 2)">a</text>'
    assert compact_svg(turned) == turned


def test_strokes_behind_each_other_that_look_alike_are_one_path():
    look = 'clip-path="url(#p)" style="fill: none; stroke: red"'
    bars = [f'<path d="M {x} 2 L {x} 3 " {look}/>' for x in range(3)]
    other, filled = bars[0].replace("red", "blue"), bars[0].replace("none", "red")
    assert compact_svg("\n".join([*bars, other, filled, filled])).split("\n") == [
        f'<path d="M 0 2 L 0 3 M 1 2 L 1 3 M 2 2 L 2 3 " {look}/>', other, filled, filled,
    ]  # fmt: skip
    faint = bars[0].replace("red", "red; stroke-opacity: 0.5")
    assert compact_svg(f"{faint}\n{faint}").split("\n") == [faint, faint]


def test_groups_that_say_nothing_go_and_marks_of_one_style_say_it_once():
    marks = [f'<use xlink:href="#m" x="{x}.00" y="2.00" style="fill: red"/>' for x in range(3)]
    bare = [mark.replace(' style="fill: red"', "") for mark in marks]
    line = ['<g id="line_1">', marks[0], "</g>"]
    drawn = ['<g id="axes_1">', '<g clip-path="url(#p)">', *marks, "</g>", *line, "</g>"]
    kept = ['<g clip-path="url(#p)" style="fill: red">', *bare, "</g>", marks[0]]
    assert compact_svg("\n".join(drawn)).split("\n") == kept
    assert compact_svg("\n".join(kept)).split("\n") == kept
    see_through = [mark.replace("fill: red", "opacity: 0.5") for mark in marks]
    apart = ['<g clip-path="url(#p)">', *see_through, "</g>"]
    others = ['<g clip-path="url(#p)">', marks[0], marks[1].replace("red", "blue"), "</g>"]
    for lines in (apart, others):
        assert compact_svg("\n".join(lines)).split("\n") == lines
