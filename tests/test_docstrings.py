"""Docstrings that say what they are about before they say how: none begins with a preposition that dangles."""

import ast
import re
from collections.abc import Iterator

from .conftest import ROOT

FOLDERS = ("baselines", "kernels", "library", "method", "repro", "tests")
# "Of stage 1." leaves its noun to the reader; "Settings of stage 1." does not.
DANGLING = re.compile(r"(?:Of|As|By|In|To|Those|For|From|With|Without|Within|At|On|Over|Under|Between|That)\b")


def docstrings(tree: ast.AST) -> Iterator[ast.Constant]:
    """Docstrings of modules, classes and functions, and the strings below attributes and constants."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for before, statement in zip([None, *node.body], node.body, strict=False):
            if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
                continue
            below_a_name = isinstance(before, ast.Assign | ast.AnnAssign)
            if isinstance(statement.value.value, str) and (before is None or below_a_name):
                yield statement.value


def dangling(source: str) -> list[tuple[int, str]]:
    """Line and first words of every docstring that begins with a preposition."""
    found = [(text.lineno, text.value.strip()) for text in docstrings(ast.parse(source))]
    return [(line, text.splitlines()[0]) for line, text in found if DANGLING.match(text)]


def test_no_docstring_begins_with_a_dangling_preposition():
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(paths) > 100
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for path in paths
        for line, text in dangling(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(["begin these with their noun or verb:", *found])


SAMPLE = """
'Of one.'
N = 1
'As two.'

class A:
    'By three.'
    x: int
    'To four.'

    def f(self):
        'Those of five.'
        return 'In six'

'Offers seven.'
"""


def test_every_place_of_a_docstring_is_looked_at():
    found = [text for _, text in dangling(SAMPLE.replace("'", '"""').lstrip())]
    assert sorted(found) == ["As two.", "By three.", "Of one.", "Those of five.", "To four."]
