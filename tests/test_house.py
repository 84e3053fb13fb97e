"""The house as CONTRIBUTING.md says it is: small folders and modules, and imports that run one way."""

import ast
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

from .conftest import ROOT

FOLDERS = ("kernels", "method", "baselines", "repro", "library")
SOURCES = {".py", ".cpp", ".h", ".cu", ".jinja"}
MOST_MODULES, MOST_LINES = 15, 300
ABOVE = {"kernels": 0, "method": 1, "baselines": 2, "repro": 3, "library": 4}
"""Order of the folders: each may import those before it."""
INSIDE_KERNELS = ("", "quantised", "model", "plan", "triton", "cuda", "cpu", "gpu", "engine", "bench")
"""Order of the folders of kernels/; the first is its own modules."""
MODULES = {path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}


def imported(path: Path) -> set[Path]:
    """Modules of the repository that a module imports, within functions too."""
    # The folder library/ is the package wisparse itself, above which the others lie.
    package = list(path.parent.parts)[1 if path.parts[0] == "library" else 0 :]
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        parts = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
        for names in (parts, *([*parts, alias.name] for alias in node.names)):
            for top in ((), ("library",)):
                module = Path(*top, *names).with_suffix(".py") if names else Path("library/__init__.py")
                found |= {module} & MODULES
    return found


IMPORTS = {path: imported(path) for path in MODULES if path.name != "__init__.py"}


def test_folders_and_modules_are_small():
    sources = [
        path
        for folder in (*FOLDERS, "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SOURCES and path.is_file()
    ]
    modules = Counter(path.parent.relative_to(ROOT).as_posix() for path in sources)
    assert {folder: n for folder, n in modules.items() if n > MOST_MODULES} == {}
    lines = {path.relative_to(ROOT).as_posix(): path.read_text().count("\n") for path in sources}
    assert {path: n for path, n in lines.items() if n > MOST_LINES} == {}
    assert len(sources) > 400


def test_no_modules_import_each_other():
    order = list(TopologicalSorter(IMPORTS).static_order())  # raises where there is a circle
    assert len(order) > 300
    assert sum(map(len, IMPORTS.values())) > 1000


def test_imports_run_one_way():
    place = {name: number for number, name in enumerate(INSIDE_KERNELS)}
    inside = {
        path: place[path.parts[1] if len(path.parts) > 2 else ""]
        for path in MODULES
        if path.parts[0] == "kernels"
    }
    for path, others in IMPORTS.items():
        for other in others:
            assert ABOVE[other.parts[0]] <= ABOVE[path.parts[0]], f"{path} imports {other}"
            if path in inside and path.name != "__init__.py":
                assert inside[other] <= inside[path], f"{path} imports {other}"
