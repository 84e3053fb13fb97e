"""Candidate items of the multiple-choice tasks on English prose, built from one document at a time."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from ..text.item_set import CHOICES, Builder, Item, choice_item, other_choices, shuffled
from .documents import Document
from .prose import WORD, balanced, sentences

LONGEST_CONTEXT = 240
"""Characters, about 50 tokens."""
SHORTEST_CONTEXT = 40

LONGEST_REST = 50
"""Characters of a sentence behind its gap: all of them are read once for each choice."""

PREPOSITIONS = ("at", "between", "by", "for", "from", "in", "into", "on", "over", "through", "under", "with")
"""The prepositions asked; `of` and `to` are left out, for they are nearly always guessed."""

ENDINGS = ("tion", "ment", "ing", "ies", "ity", "ble", "ive", "ed", "ly", "al", "er", "es", "s", "")
"""Words with the same ending, the first that fits, stand in each other's place grammatically."""

SHORTEST_WORD = 5
"""Letters of a word that is asked for."""


def preceding_sentences(parts: list[str], characters: int = LONGEST_CONTEXT) -> str:
    """The longest tail of whole sentences with at most so many characters."""
    start = len(parts)
    while start and len(" ".join(parts[start - 1 :])) <= characters:
        start -= 1
    return " ".join(parts[start:])


def next_sentence(document: Document, generator: random.Random) -> Iterator[Item]:
    """Which sentence comes next: the distractors are as long, and of other paragraphs of the same file."""
    for paragraph in shuffled(document.paragraphs, generator):
        parts = sentences(paragraph)
        for place in shuffled(range(1, len(parts)), generator):
            answer, context = parts[place], preceding_sentences(parts[:place])
            if len(context) < SHORTEST_CONTEXT or not 40 <= len(answer) <= 140:
                continue
            if not _content_words(context) & _content_words(answer):
                continue  # nothing ties it to what stands before
            others = [
                sentence
                for other in document.paragraphs
                if other != paragraph
                for sentence in sentences(other)
                if 0.6 <= len(sentence) / len(answer) <= 1.6
            ]
            distractors = other_choices(others, answer, generator)
            if distractors:
                yield choice_item(
                    context, f" {answer}", [f" {each}" for each in distractors], document, generator
                )
                break


def sentence_order(document: Document, generator: random.Random) -> Iterator[Item]:
    """Order in which two sentences follow the one before them."""
    for paragraph in shuffled(document.paragraphs, generator):
        parts = sentences(paragraph)
        if len(parts) < 3:
            continue
        place = generator.randrange(1, len(parts) - 1)
        context, (first, second) = preceding_sentences(parts[:place]), parts[place : place + 2]
        if len(context) >= SHORTEST_CONTEXT and len(first) + len(second) <= 240:
            yield choice_item(context, f" {first} {second}", [f" {second} {first}"], document, generator)


def gaps(paragraph: str) -> Iterator[tuple[str, str, str]]:
    """Places of a word: everything before it, the word, and the rest of its sentence."""
    parts = sentences(paragraph)
    for number, sentence in enumerate(parts):
        for match in WORD.finditer(sentence):
            head, rest = sentence[: match.start()], sentence[match.end() :]
            begun = head.endswith(" ") and len(WORD.findall(head)) >= 3
            if begun and len(rest) <= LONGEST_REST and balanced(head) and rest[0] in " ,.;":
                before = preceding_sentences(parts[:number], LONGEST_CONTEXT - len(head))
                context = f"{before} {head}".strip()
                if len(context) >= SHORTEST_CONTEXT:
                    yield context, match.group(), rest


def preposition(document: Document, generator: random.Random) -> Iterator[Item]:
    """Which of four prepositions fits a gap."""
    for paragraph in shuffled(document.paragraphs, generator):
        places = [
            gap for gap in gaps(paragraph) if gap[1] in PREPOSITIONS and gap[2][0] == " " and len(gap[2]) >= 10
        ]
        if places:
            context, answer, rest = generator.choice(places)
            yield _gap_item(context, answer, list(PREPOSITIONS), rest, document, generator)


def content_word(document: Document, generator: random.Random) -> Iterator[Item]:
    """Which of four words of the same file, with the same ending, fits a gap."""
    words = sorted({word for each in document.paragraphs for word in WORD.findall(each) if _is_content(word)})
    for paragraph in shuffled(document.paragraphs, generator):
        for context, answer, rest in shuffled(list(gaps(paragraph)), generator):
            if not _is_content(answer):
                continue
            others = [word for word in words if _ending(word) == _ending(answer) and word[:4] != answer[:4]]
            if len(others) >= CHOICES - 1:
                yield _gap_item(context, answer, others, rest, document, generator)
                break


def _gap_item(
    context: str, answer: str, others: list[str], rest: str, document: Document, generator: random.Random
) -> Item:
    distractors = other_choices(others, answer, generator) or []
    choices = [f" {word}{rest}" for word in distractors]
    return choice_item(context, f" {answer}{rest}", choices, document, generator)


def _content_words(text: str) -> set[str]:
    return {word for word in WORD.findall(text.lower()) if _is_content(word)}


def _is_content(word: str) -> bool:
    return len(word) >= SHORTEST_WORD and bool(re.fullmatch("[a-z]+", word))


def _ending(word: str) -> str:
    return next(ending for ending in ENDINGS if word.endswith(ending))


CHOICE_TASKS: dict[str, Builder] = {
    "next_sentence": next_sentence,
    "sentence_order": sentence_order,
    "preposition": preposition,
    "content_word": content_word,
}
