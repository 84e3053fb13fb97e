"""Candidate items without choices on English prose: the last word, and held-out text."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from ..text.item_set import TEXT, Builder, Item, shuffled
from .choice_tasks import SHORTEST_WORD, preceding_sentences
from .documents import Document
from .prose import WORD, balanced, sentences

LONGEST_CONTEXT = 400
"""Characters, about 80 tokens."""

SHORTEST_TEXT, LONGEST_TEXT = 800, 1200
"""Characters of one held-out text: 150 to 250 tokens."""


def last_word(document: Document, generator: random.Random) -> Iterator[Item]:
    """The last word of a sentence, which the passage has used before (as LAMBADA asks for the last word)."""
    for paragraph in shuffled(document.paragraphs, generator):
        parts = sentences(paragraph)
        for place in shuffled(range(len(parts)), generator):
            last = re.fullmatch(r"(.* )([a-z]+)\.", parts[place])
            if not last or len(last[2]) < SHORTEST_WORD or not balanced(last[1]):
                continue
            earlier = preceding_sentences(parts[:place], LONGEST_CONTEXT - len(last[1]))
            context = f"{earlier} {last[1]}".strip()
            if last[2] in WORD.findall(context):
                yield {"context": context, "target": f" {last[2]}", "source": document.path}
                break


def heldout_text(document: Document, generator: random.Random) -> Iterator[Item]:
    """Paragraphs of a file, for perplexity and bits per byte."""
    start = generator.randrange(len(document.paragraphs))
    turned = document.paragraphs[start:] + document.paragraphs[:start]
    text = ""
    for paragraph in turned:
        text += ("\n\n" if text else "") + paragraph
        if len(text) >= SHORTEST_TEXT:
            break
    if SHORTEST_TEXT <= len(text) <= LONGEST_TEXT:
        yield {"text": text, "source": document.path}


COMPLETION_TASKS: dict[str, Builder] = {"last_word": last_word, TEXT: heldout_text}
