"""Pages for people: generated blocks as their sources say, links that lead somewhere, commands that exist."""

import re
from pathlib import Path

import pytest
from wisparse.repro.report.readme import PAGES, filled

from ...conftest import METHODS, ROOT

WRITTEN = sorted(
    path
    for pattern in (
        "*.md",
        "docs/*.md",
        "results/README.md",
        "results/questions/README.md",
        "repro/embedded/*.md",
    )
    for path in ROOT.glob(pattern)
)
COMMANDS = [
    (page, line)
    for page in WRITTEN
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
] + [
    (page, command)
    for page in WRITTEN
    for command in re.findall(r"`((?:make|python) [^`]+)`", page.read_text(encoding="utf-8"))
]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_generated_blocks_are_as_their_sources_say(page):
    assert filled(page, read(page)) == read(page), "run `make readme`"


def test_the_methods_page_has_its_measurements_from_tables_alone():
    """Sparsities that plans are made for are the only shares of its prose, and no number there has decimals."""
    page = read("docs/method.md")
    for left_out in (
        r"<!-- ([^>]*): made by `make readme` -->.*?<!-- end of \1 -->",
        r"\$\$.*?\$\$",
        r"\$[^$]*\$",
        r"`[^`]*`",
        r"\]\([^)]*\)",
        r"arXiv [\d.]+",
    ):
        page = re.sub(left_out, "", page, flags=re.DOTALL)
    assert "Sparsity gets cheaper" in page  # prose is left
    assert set(re.findall(r"\d[\d.,]*\d*\s*%|\d+\.\d+", page)) <= {"50 %", "60 %"}


def test_the_catalogue_lists_every_method_once():
    pages = read("README.md") + read("docs/paper.md")
    assert sorted(re.findall(r"^\| `(\w+)` \|", pages, re.MULTILINE)) == sorted(METHODS)


def test_a_lost_marker_is_noticed():
    with pytest.raises(ValueError, match=r"README\.md lacks the markers of its block 'speed'"):
        filled("README.md", "no markers")


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_inside_the_repository_leads_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        found = (page.parent / target) if target else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), f"{target}#{anchor}"


def test_rows_of_tables_have_as_many_columns_as_their_heads():
    """A bar in a cell, as in |x|, moves all behind it, unless it is escaped."""
    wrong = []
    for page in {*WRITTEN, *(ROOT / "results").rglob("*.md")}:
        for table in re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), re.M):
            rows = table.splitlines()
            bars = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
            wrong += [(page, row) for row, count in zip(rows, bars, strict=True) if count != bars[0]]
    assert not wrong


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z0-9-]+):", read("Makefile"), re.MULTILINE))
    targets |= {f"reproduce-{part}" for part in ("table1", "table2")}
    named = {(page.name, name) for page, line in COMMANDS for name in re.findall(r"^make ([a-z0-9-]+)", line)}
    assert len(named) > 10
    assert {(page, name) for page, name in named if name not in targets} == set()


def test_every_module_that_a_command_runs_exists():
    named = {name for _, line in COMMANDS for name in re.findall(r"-m wisparse\.([\w.]+)", line)}
    assert len(named) > 2
    for name in named:
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name


def test_every_choice_that_a_command_makes_exists():
    groups = [path.name for path in (ROOT / "conf").iterdir() if path.is_dir()]
    choice = re.compile(rf"(?<!\S)({'|'.join(groups)})=([\w.,-]+)")
    named = {found for _, line in COMMANDS if "run.py" in line for found in choice.findall(line)}
    assert len(named) > 12
    for group, values in named:
        for value in values.split(","):
            path = f"conf/{group}/{value}.yaml"
            assert (ROOT / path).exists() or f"`{path}`:" in read("CONTRIBUTING.md"), f"{group}={value}"


def test_every_file_of_results_is_explained():
    explained = re.findall(
        r"`([\w./*-]+)`", "".join(re.findall(r"^\| (.+?) \|", read("results/README.md"), re.M))
    )
    names = [path.name + "/" * path.is_dir() for path in (ROOT / "results").iterdir()]
    for name in names:
        known = name in {"README.md", "quick/", "paper/"} or name.startswith("bench-")
        assert known or any(Path(name).match(pattern) for pattern in explained), name
