"""Candidate items of the multiple-choice tasks, built from one held-out file at a time."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from ..text.item_set import Builder, Item, choice_item, other_choices, shuffled
from .sources import Function, Module, identifiers, indentation, is_plain, preceding, variables

LONGEST_CONTEXT = 160
"""Characters, about 45 tokens: four choices cost four passes over the context."""


def next_line(module: Module, generator: random.Random) -> Iterator[Item]:
    """Which line comes next: the distractors are lines of the same file with the same indentation."""
    lines = [line for function in module.functions for line in function.code if is_plain(line, 12, 60)]
    for function in shuffled(module.functions, generator):
        whole = function.signature + function.code
        places = [
            place for place in range(len(function.signature) + 2, len(whole)) if is_plain(whole[place], 12, 60)
        ]
        if not places:
            continue
        place = generator.choice(places)
        answer = whole[place]
        same_level = [
            line for line in lines if indentation(line) == indentation(answer) and line not in function.code
        ]
        distractors = other_choices(same_level, answer, generator)
        context = preceding(whole[:place], LONGEST_CONTEXT)
        if distractors and len(context) >= 2:
            yield choice_item(
                _joined(context), answer + "\n", [line + "\n" for line in distractors], module, generator
            )


def function_body(module: Module, generator: random.Random) -> Iterator[Item]:
    """Which body belongs to this signature and docstring: the others are bodies of the same file."""
    bodies = {function: _opening(function) for function in module.functions}
    for function, body in shuffled(list(bodies.items()), generator):
        header = "\n".join(function.signature)
        if body is None or not 15 <= len(function.summary) <= 80 or len(header) > 110:
            continue
        distractors = other_choices([other for other in bodies.values() if other], body, generator)
        if distractors:
            context = f'{header}\n    """{function.summary}"""\n'
            yield choice_item(context, body, distractors, module, generator)


def _opening(function: Function) -> str | None:
    """First two lines of code, or None where they are too short, too long or hold strings."""
    lines = function.code[:2]
    if len(lines) < 2 or not all(is_plain(line, 6, 60) for line in lines):
        return None
    return _joined(lines)


def return_statement(module: Module, generator: random.Random) -> Iterator[Item]:
    """Which return statement ends this function: the others end functions of the same file."""
    endings = {function: _ending(function) for function in module.functions}
    for function, ending in shuffled(list(endings.items()), generator):
        if ending is None:
            continue
        body = function.signature + function.code[:-1]
        context = preceding(body, LONGEST_CONTEXT)
        distractors = other_choices([other for other in endings.values() if other], ending, generator)
        if distractors and len(context) >= 2:
            yield choice_item(_joined(context), ending, distractors, module, generator)


def _ending(function: Function) -> str | None:
    """The last line where it is a top-level return of more than one name."""
    last = function.code[-1] if function.code else ""
    if last.startswith("    return ") and is_plain(last, 16, 60) and len(identifiers(last)) > 1:
        return last + "\n"
    return None


def variable_misuse(module: Module, generator: random.Random) -> Iterator[Item]:
    """Which of two lines is the true one: they differ in one variable, and both are in the context."""
    for function in shuffled(module.functions, generator):
        whole = function.signature + function.code
        places = [
            place for place in range(len(function.signature) + 1, len(whole)) if is_plain(whole[place], 10, 70)
        ]
        for place in shuffled(places, generator):
            line = whole[place]
            others = [(name, _replacements(whole, place, name, function)) for name in identifiers(line)]
            usable = [(name, names) for name, names in others if names]
            if usable:
                name, names = generator.choice(usable)
                wrong = line[: name.start()] + generator.choice(names) + line[name.end() :]
                context = _joined(preceding(whole[:place], LONGEST_CONTEXT))
                yield choice_item(context, line + "\n", [wrong + "\n"], module, generator)
                break


def _replacements(whole: tuple[str, ...], place: int, match: re.Match[str], function: Function) -> list[str]:
    """Other variables that the context mentions and the line does not.

    Empty where the name is not a variable, is not in the context, or is assigned, called or a keyword here.
    """
    line = whole[place]
    assigned_or_called = re.match(r"\s*(=(?!=)|\(|,.*[^=!<>]=[^=]|[-+*/|&%]+=)", line[match.end() :])
    known = variables(function)
    if match.group() not in known or assigned_or_called:
        return []
    mentioned = {
        name.group() for earlier in preceding(whole[:place], LONGEST_CONTEXT) for name in identifiers(earlier)
    }
    if match.group() not in mentioned:
        return []
    in_line = {name.group() for name in identifiers(line)}
    return sorted((mentioned & known) - in_line)


def _joined(lines: tuple[str, ...]) -> str:
    return "".join(line + "\n" for line in lines)


CHOICE_TASKS: dict[str, Builder] = {
    "next_line": next_line,
    "function_body": function_body,
    "return_statement": return_statement,
    "variable_misuse": variable_misuse,
}
