"""results/report.html: self-contained, and its tables hold the CSVs' own numbers."""

from __future__ import annotations

import csv
import re
import shutil
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
from wisparse.method.errors import UserError
from wisparse.repro.claims.evidence import Evidence
from wisparse.repro.claims.printed import load_claims
from wisparse.repro.claims.verify import claims_csv, claims_markdown, verify
from wisparse.repro.records import write_json, write_text
from wisparse.repro.report.page import render
from wisparse.repro.report.plots import colours
from wisparse.repro.tables.csv_rows import read_rows
from wisparse.repro.tables.make import TABLES, write_tables
from wisparse.repro.tables.questions.question_data import METHOD

from ..tables.made_up_cells import CONFIG, write_cell

LOADING = {"src", "xlink:href", "srcset", "data", "poster", "action", "background"}


class Page(HTMLParser):
    """Tables by id as columns of (shown, data-value), addresses that a browser would load, and headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.columns: dict[str, list[str]] = {}
        self.rows: dict[str, list[list[tuple[str, str]]]] = {}
        self._table = ""
        self._cell: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.loads += [found[name] for name in LOADING & found.keys()]
        (self.links if tag == "a" else self.loads).extend([found["href"]] if "href" in found else [])
        self.ids += [found["id"]] if "id" in found else []
        if tag == "table":
            self._table = found["id"]
            self.columns[self._table], self.rows[self._table] = [], []
        elif tag == "th":
            self.columns[self._table].append(found["data-column"])
        elif tag == "tr" and self._table:
            self.rows[self._table].append([])
        elif tag == "td":
            self._cell = ""
            self._value = found["data-value"]

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data

    def handle_endtag(self, tag):
        if tag == "td":
            self.rows[self._table][-1].append((self._cell.strip(), self._value))
            self._cell = None


@cache
def page_text(results: Path) -> str:
    return render(results)


def table_rows(page: Page, name: str) -> list[dict[str, tuple[str, str]]]:
    return [dict(zip(page.columns[name], row, strict=True)) for row in page.rows[name] if row]


CELLS = (
    ("dense", 0.0, 0), ("teal", 0.5, 20), ("teal", 0.7, 40), ("wisparse", 0.5, 10), ("wisparse", 0.7, 30),
)  # fmt: skip
STAGES = (("dense", 0.0, 0), ("wisparse_activation_only", 0.5, 40), ("wisparse_weight", 0.5, 24))
QUESTION = {"title": "Which method?", "name": "method", "factor": METHOD, "reference": "wisparse"}
SPEED_HEADER = (
    "device,model,method,sparsity,realised_sparsity,batch,prompt,tok_s,baseline,baseline_tok_s,speedup,"
    "byte_limit_speedup,bandwidth_gb_s,share_of_bandwidth"
)
SPEED = "CPU (2 threads),llama-mini,teal,0.5,0.49871,1,5,812.345,engine-dense,600.5,1.3528,1.6,9.31,0.61"
PAPER_TABLE2 = (
    "model,configuration,sparsity,average,step,step_low,step_high,kept,perplexity,step_perplexity_ratio,"
    "realised_sparsity,siqa,status\nllama3.1-8b,+ weight,0.5,61.6,2.9,1.0,4.0,93.9,,,0.5,43.60,measured\n"
)
SVG = '<svg xmlns="http://www.w3.org/2000/svg"/>'


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of records made here: two tables, the frontier, a question, and the verdicts on every claim."""
    folder = tmp_path_factory.mktemp("made") / "results"
    records = folder / "records"
    for cell in CELLS:
        write_cell(records / "table1", *cell)
        config = CONFIG | {"question": QUESTION, "method": {"name": cell[0]}}
        write_cell(records / "question", *cell, config=config)
    for cell in STAGES:
        write_cell(records / "table2", *cell)
    note = {"model": {"name": "llama-mini"}, "method": {"name": "chess"}, "sparsity": 0.7, "maximum": 0.69}
    write_json(records / "table1" / "llama-mini-chess-0.7-00000000" / "unreachable.json", note)
    for name, source, output in (
        ("table1", "table1", "table1"),
        ("table2", "table2", "table2"),
        ("frontier", "table1", "frontier"),
        ("question", "question", "questions/method"),
    ):
        write_tables(TABLES[name], TABLES[name].read(records / source), folder / output)
    verified = verify(load_claims(), Evidence(folder))
    write_text(folder / "claims.csv", claims_csv(verified))
    write_text(folder / "claims.md", claims_markdown(verified))
    return folder


@pytest.fixture
def fuller(results, tmp_path):
    """The results with a speed table, a cost table and figures beside them."""
    folder = tmp_path / "results"
    shutil.copytree(results, folder)
    write_text(folder / "speed.csv", f"{SPEED_HEADER}\n{SPEED}\n")
    write_text(folder / "search-cost.csv", "model,stage,seconds\nx<b>,coarse,12.5\n")
    write_text(folder / "paper" / "table2.csv", PAPER_TABLE2)
    for ending in (".csv", ".md", ".svg"):
        (folder / "real").mkdir(exist_ok=True)
        shutil.copyfile(folder / "questions" / f"method{ending}", folder / "real" / f"batch_half{ending}")
        if ending != ".svg":
            shutil.copyfile(folder / f"table1{ending}", folder / "real" / f"table1{ending}")
    (folder / "speed-cpu.png").write_bytes(b"\x89PNG")
    write_text(folder / "figure2.svg", SVG)
    return folder


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(results, fuller):
    for folder in (results, fuller):
        text = page_text(folder)
        page = Page(text)
        assert all(address.startswith(("data:", "#")) for address in page.loads), page.loads
        assert not re.search(r"@import|url\((?!#)", text)
        assert not re.search(r"<(script|link|iframe|object|embed)\b[^>]*(src|href|data)=", text)
    assert sum(address.startswith("data:image/") for address in page.loads) >= 2


@pytest.mark.parametrize("name", ["table1", "table2"])
def test_the_tables_hold_the_csvs_numbers(results, name):
    expected = read_rows(results / f"{name}.csv")
    rows = table_rows(Page(page_text(results)), f"{name}-rows")
    assert len(rows) == len(expected) > 3
    for row, source in zip(rows, expected, strict=True):
        assert {column: value for column, (_, value) in row.items()} == {c: source[c] for c in row}
        if source["average"]:
            assert float(row["average"][0]) == pytest.approx(float(source["average"]), abs=0.00501)
            assert float(row["kept"][0]) == pytest.approx(float(source["kept"]), abs=0.0501)
        else:
            assert row["average"][0] == source["status"]


def test_intervals_are_shown_whole(results):
    row = next(row for row in table_rows(Page(page_text(results)), "table1-rows") if row["method"][1] == "teal")
    shown, value = row["average_minus_dense"]
    source = next(row for row in read_rows(results / "table1.csv") if row["method"] == "teal")
    bounds = [float(source[f"average_minus_dense{end}"]) for end in ("", "_low", "_high")]
    assert shown == "{:+.2f} [{:+.2f}, {:+.2f}]".format(*bounds)
    assert value == source["average_minus_dense"]


def test_every_claim_is_there_with_its_verdict(results):
    page = Page(page_text(results))
    shown = [
        (row["claim"][0], row["verdict"][0])
        for name in page.columns
        if name.startswith("claims-")
        for row in table_rows(page, name)
    ]
    with (results / "claims.csv").open(encoding="utf-8", newline="") as file:
        assert sorted(shown) == sorted((row["claim"], row["verdict"]) for row in csv.DictReader(file))


def test_what_is_there_has_a_section_and_what_is_not_says_so(results, fuller):
    assert {"table1", "claims", "provenance"} <= set(Page(page_text(results)).ids)
    (fuller / "table1.csv").unlink()
    text = page_text(fuller)
    assert 'embedded models: <span class="soft">not measured (<code>make reproduce-table1 PROFILE=full' in text
    page = Page(text)
    assert {"speed", "search-cost", "figures", "paper", "paper-table2"} <= set(page.ids)
    assert table_rows(page, "paper-table2")[0]["siqa"] == ("43.6", "43.60")
    assert table_rows(page, "speed-rows")[0]["speedup"] == ("1.35×", "1.3528")
    assert table_rows(page, "search-cost-rows")[0]["model"] == ("x<b>", "x<b>")


def test_the_questions_and_the_frontier_hold_their_tables_rows(results):
    page = Page(page_text(results))
    tables = {f"questions-{path.stem}": path for path in (results / "questions").glob("*.csv")}
    for name, path in (tables | {"frontier-rows": results / "frontier.csv"}).items():
        shown = [row["perplexity"][1] for row in table_rows(page, name)]
        assert shown == [row["perplexity"] for row in read_rows(path)], name


def test_the_real_models_tables_stand_in_order_with_their_pages_and_plots(fuller):
    text = page_text(fuller)
    page = Page(text)
    assert [name for name in page.columns if name.startswith("real-")] == ["real-table1", "real-batch_half"]
    # By the columns that its table declares, though the file bears another name.
    assert table_rows(page, "real-batch_half")[0]["sparsity"] == ("0 %", "0.0")
    part = text[text.index("results/real/batch_half.csv") : text.index('id="real-batch_half"')]
    assert "How to read this" in part
    assert "<svg" in part
    assert "settings_tried" not in text


def test_ids_are_unique_and_links_lead_somewhere(results):
    page = Page(page_text(results))
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_links_of_a_folders_page_are_as_seen_from_the_report(fuller):
    page = fuller / "real" / "batch_half.md"
    note = "- See [readings](../../conf/reading), [speed](../speed.csv), [this](#x) and [paper](https://arxiv.org/abs/1).\n"
    page.write_text(page.read_text().replace("\n- ", f"\n{note}- ", 1))
    assert {"../conf/reading", "speed.csv", "#x", "https://arxiv.org/abs/1"} <= set(Page(render(fuller)).links)


def test_the_legend_has_the_colours_of_the_lines(results):
    rows = read_rows(results / "table1.csv")
    text = page_text(results)
    for method, colour in colours(rows).items():
        assert f'<i style="background:{colour}"></i>{method}' in text
        drawn = len(re.findall(rf"stroke: {colour}", text))
        assert drawn > 0, f"no line of {method}"


def test_the_provenance_names_device_commit_and_command(results):
    text = page_text(results)
    assert "float32 on CPU (2 threads)" in text
    assert "<code>python repro/run.py method=teal sparsity=0.5</code>" in text
    assert f"<dt>Commits</dt><dd><code>{'a' * 10}</code>" in text


def test_the_same_files_give_the_same_page(results):
    assert render(results) == page_text(results)


def test_an_empty_folder_is_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no results"):
        render(tmp_path)
