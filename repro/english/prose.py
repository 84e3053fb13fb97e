"""Prose out of docstrings and README files: paragraphs of whole English sentences, and nothing else.

A paragraph is kept when it looks like running text: whole sentences with as many function words as English has,
without code, markup, links, lists and tables. Regular expressions on plain ASCII alone decide, so that the same
file gives the same paragraphs on every machine and Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

FUNCTION_WORDS = frozenset(
    """
    a all also an and any are as at be because been but by can each for from has have if in into is it its may
    more most no not of on one only or other our over since so some such than that the their then there these
    they this those to two use used using was we when where which while will with without you your
    """.split()  # noqa: SIM905
)
FEWEST_FUNCTION_WORDS = 0.34
"""Share of the words; running English has 0.4 to 0.5."""

SHORTEST_PARAGRAPH = 15
"""Words."""

NOT_PROSE = re.compile(
    r"[^\n\x20-\x7e]|[`*_{}<>=|\\/@#$^~\[\]+%&]|::|--|>>>|\.\.|\(\)|\w\.\w|\s:|\w+:\s\S+:\s|^\s*\w+:\s|\b(?:TODO|FIXME|NOTE)\b"
)
"""Marks of code, markup, formulas, links, lists of parameters and headings that run into the text."""

WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")
DOCSTRING = re.compile(r"^[ \t]*[rRuU]?(\"{3}|'{3})(.*?)\1", re.DOTALL | re.MULTILINE)
LIST_ENTRY = re.compile(r"\s*(?:[-*+o]|\(?\w{1,2}[.)])\s")
ABBREVIATION = re.compile(r"(?:\b(?:al|cf|eq|et|etc|fig|resp|vs|Dr|Mr|Prof|[A-Za-z])|\d)\.$", re.IGNORECASE)
SENTENCE_END = re.compile(r"(?<=[.?!])\s+(?=[A-Z])")
NUMBER = re.compile(r"\d+")
LARGEST_ODD_SHARE = 0.12
"""Numbers, single letters and words with capitals inside, as a share of the words."""
SHORTEST_SENTENCE = 5
"""Words."""


def paragraphs(text: str) -> Iterator[str | None]:
    """The paragraphs of a text on one line each, None in place of each that is not prose."""
    for block in re.split(r"\n[ \t]*\n", text.expandtabs().strip("\n")):
        yield _prose(block)


def _prose(block: str) -> str | None:
    block = block.rstrip()
    if not block.endswith(".") or NOT_PROSE.search(block) or not _is_flush(block):
        return None
    text = " ".join(block.split())
    words = WORD.findall(text)
    if len(words) < SHORTEST_PARAGRAPH or not text[0].isupper() or not balanced(text):
        return None
    common = sum(word.lower() in FUNCTION_WORDS for word in words)
    odd = sum(len(word) == 1 or word[1:] != word[1:].lower() for word in words) + len(NUMBER.findall(text))
    if common < FEWEST_FUNCTION_WORDS * len(words) or odd > LARGEST_ODD_SHARE * len(words):
        return None
    return text if all(len(WORD.findall(each)) >= SHORTEST_SENTENCE for each in sentences(text)) else None


def _is_flush(block: str) -> bool:
    """Whether all lines begin in the same column, but for a docstring's first, and none is a list's entry."""
    lines = [line for line in block.split("\n") if line.strip()]
    columns = [len(line) - len(line.lstrip(" ")) for line in lines]
    if columns[0] == 0 and len(lines) > 1:
        del columns[0]  # it stands behind the quotes
    return len(set(columns)) == 1 and not any(LIST_ENTRY.match(line) for line in lines)


def balanced(text: str) -> bool:
    """Whether parentheses and quotation marks come in pairs."""
    return text.count("(") == text.count(")") and text.count('"') % 2 == 0


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph, abbreviations not taken for ends."""
    found: list[str] = []
    for part in SENTENCE_END.split(paragraph):
        if found and ABBREVIATION.search(found[-1]):
            found[-1] += " " + part
        else:
            found.append(part)
    return found


def docstring_texts(source: str) -> Iterator[str]:
    """Strings in triple quotes that begin a line of a Python file, in their order, as they are written.

    A regular expression, for parsing the files of large packages takes half a minute.
    """
    for match in DOCSTRING.finditer(source):
        yield match[2]
