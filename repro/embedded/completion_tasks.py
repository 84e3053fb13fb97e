"""Candidate items of the tasks without choices: last identifier, rest of a line, and held-out text."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from ..text.item_set import TEXT, Builder, Item, shuffled
from .sources import Module, identifiers, is_plain, preceding

WORD = re.compile(r"\b[A-Za-z_]\w+")

LONGEST_CONTEXT = 300
"""Characters, about 85 tokens."""

SHORTEST_TEXT, LONGEST_TEXT = 1200, 1500
"""Characters of one held-out text: 300 to 500 tokens."""


def last_identifier(module: Module, generator: random.Random) -> Iterator[Item]:
    """The last name of a line, which the context has already used (as LAMBADA asks for the last word)."""
    for function in shuffled(module.functions, generator):
        whole = function.signature + function.code
        for place in shuffled(range(len(function.signature) + 1, len(whole)), generator):
            line = whole[place]
            names = identifiers(line) if is_plain(line, 10, 70) else []
            if not names or names[-1].start() < 2 or len(names[-1].group()) < 2:
                continue
            name, start = names[-1].group(), names[-1].start()
            # The character before the name is part of the target, because tokenizers join the two.
            if line[start - 1] not in " (" or not re.match(r"[\w=,+*/-]", line[start - 2]):
                continue
            context = "\n".join((*preceding(whole[:place], LONGEST_CONTEXT), line[: start - 1]))
            if name in {match.group() for match in identifiers(context)}:
                yield {"context": context, "target": line[start - 1] + name, "source": module.path}
                break


def complete_line(module: Module, generator: random.Random) -> Iterator[Item]:
    """The rest of a line: short, with at least one name, all of its names used before."""
    for function in shuffled(module.functions, generator):
        whole = function.signature + function.code
        for place in shuffled(range(len(function.signature) + 1, len(whole)), generator):
            earlier = preceding(whole[:place], LONGEST_CONTEXT)
            splits = _splits("".join(line + "\n" for line in earlier), whole[place])
            if splits:
                context, target = generator.choice(splits)
                yield {"context": context, "target": target, "source": module.path}
                break


def _splits(earlier: str, line: str) -> list[tuple[str, str]]:
    """Ways to cut a line behind a word in its last third, as (everything before, rest)."""
    if not is_plain(line, 16, 70):
        return []
    splits = []
    for cut in re.finditer(r"(?<=\w)(?=[ (\[])", line):
        head, rest = line[: cut.start()], line[cut.start() :]
        names = set(WORD.findall(rest))
        late_enough = 3 * len(head.strip()) >= 2 * len(line.strip())
        if late_enough and 3 <= len(rest) <= 14 and names and names <= set(WORD.findall(earlier + head)):
            splits.append((earlier + head, rest))
    return splits


def heldout_text(module: Module, generator: random.Random) -> Iterator[Item]:
    """One stretch of whole lines of a file, for perplexity and bits per byte."""
    lines = module.text.split("\n")
    starts = [place for place, line in enumerate(lines) if re.match(r"(def|class|@|[A-Za-z_])", line)]
    for start in shuffled(starts, generator):
        text = ""
        for line in lines[start:]:
            text += line + "\n"
            if len(text) >= SHORTEST_TEXT:
                break
        if SHORTEST_TEXT <= len(text) <= LONGEST_TEXT:
            yield {"text": text, "source": module.path}
            return


COMPLETION_TASKS: dict[str, Builder] = {
    "last_identifier": last_identifier,
    "complete_line": complete_line,
    TEXT: heldout_text,
}
