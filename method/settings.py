"""Types and bounds of settings, declared once: a type by the field's annotation, a bound by the field's name.

A name means the same in every class. A configuration is checked by them whole before anything of it is built,
and `Settings` where they are built, in Python as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from .errors import UserError


class Bound(NamedTuple):
    """What a number must keep to, and how that is said."""

    text: str
    holds: Callable[[float], bool]


FROM_0 = Bound("from 0 up", lambda value: value >= 0)
FROM_1 = Bound("from 1 up", lambda value: value >= 1)
FROM_2 = Bound("from 2 up", lambda value: value >= 2)
ABOVE_0 = Bound("above 0", lambda value: value > 0)
SHARE = Bound("from 0 to 1", lambda value: 0 <= value <= 1)

COUNTS = (
    "basis_sequences", "batch", "batch_size", "batch_tokens", "block_tokens", "bytes",
    "correction_bound", "correction_sequences", "divergence_tokens", "draws", "epoch_tokens", "epochs", "group",
    "limit", "longest_answer", "memory_mb", "norm_order", "offspring", "own_sequences", "piece", "population",
    "prompt", "repeats", "rounds", "rows", "search_tokens", "seconds", "sensitivity_sequences", "sequences",
    "share_population", "tokens", "tokens_a_step", "trials", "windows", "workers",
)  # fmt: skip
STEPS = (
    "alpha_step", "bandwidth", "bias_rate", "damping", "evolution_step", "greedy_step", "learning_rate",
    "plain_share", "realised_tolerance", "rotated_share", "step", "wina_greedy_step",
)  # fmt: skip
SHARES = (
    "choices", "dense_share", "held_out_share", "largest_overlap", "maximum", "minimum", "mutated_share",
    "mutation", "share",
)  # fmt: skip
BOUNDS = {
    **dict.fromkeys(COUNTS, FROM_1),
    **dict.fromkeys(STEPS, ABOVE_0),
    **dict.fromkeys(SHARES, SHARE),
    **dict.fromkeys(("apart_every", "length", "levels", "max_length", "new_tokens"), FROM_2),
    **dict.fromkeys(("dropped", "good_share"),
                    Bound("above 0 and below 1", lambda value: 0 < value < 1)),
    "density": Bound("above 0 up to 1; 0.5 keeps half of the key-value groups", lambda value: 0 < value <= 1),
    **dict.fromkeys(("input_share", "recall"), Bound("above 0 up to 1", lambda value: 0 < value <= 1)),
    # As the cell's name has it: 0.99999999 would be called 1, and is.
    "sparsity": Bound("in [0, 1); 0.5 leaves half of the block weights unread",
                      lambda value: value >= 0 and float(f"{value:g}") < 1),
    **dict.fromkeys(("seed", "weights_seed", "norm_spread_seed"),
                    Bound("from 0 to 4294967295", lambda value: 0 <= value < 2**32)),
}  # fmt: skip
"""Bounds by the name of a setting; of all other numbers FROM_0."""


class Settings:
    """Base of dataclasses that a configuration describes: what Python hands them is checked like it.

    A `__post_init__` of their own calls this one first. Raises UserError for what does not fit a field.
    """

    def __post_init__(self) -> None:
        kinds = get_type_hints(type(self))
        for field in fields(self):
            place = f"{type(self).__name__}.{field.name}"
            _check_whole(kinds[field.name], getattr(self, field.name), place, field.name)


def _check_whole(kind: Any, value: Any, place: str, name: str) -> None:
    check_setting(kind, value, place, name)
    for where, inside, entry in entries(kind, value, place):
        _check_whole(inside, entry, where, name)


def check_setting(kind: Any, value: Any, place: str, name: str) -> None:
    """Check a value against an annotation and the bound of its name; `place` is what the message calls it.

    Of a list or a mapping that alone is looked at: `entries` has what it holds. Raises UserError for another
    type, for a number that is not finite or out of its bound, and for a name of several lines.
    """
    known = list(_alternatives(kind))
    if known and not any(_fits(one, value, name) for one in known):
        wanted = " or ".join(dict.fromkeys(_described(one, name) for one in known))
        raise UserError(f"{place}={_shown(value)} is not {wanted}")


def entries(kind: Any, value: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Place, type and value of what a list or a mapping holds."""
    containers = [one for one in _alternatives(kind) if get_args(one) and get_origin(one) is not Literal]
    for one in containers:
        if isinstance(value, Mapping):
            yield from ((f"{place}.{key}", get_args(one)[1], entry) for key, entry in value.items())
        elif _is_list(value):
            yield from ((f"{place}[{index}]", get_args(one)[0], entry) for index, entry in enumerate(value))


def _alternatives(kind: Any) -> Iterator[Any]:
    """Members of a union, or the type itself; none of what says nothing."""
    if get_origin(kind) in (UnionType, Union):
        for one in get_args(kind):
            yield from _alternatives(one)
    elif kind is not Any:
        yield kind


def _fits(kind: Any, value: Any, name: str) -> bool:
    if kind is NoneType:
        return value is None
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind in (int, float):
        return _is_number(value, kind) and BOUNDS.get(name, FROM_0).holds(value)
    if kind in (str, bool):
        # A name stands in one line of a table.
        return isinstance(value, kind) and (name != "name" or str(value).isprintable())
    return _is_of_kind(get_origin(kind) or kind, value)


def _is_of_kind(kind: Any, value: Any) -> bool:
    """Whether it is such a list, mapping or object; a configuration has objects as mappings of their class."""
    if _is_of_lists(kind):
        return _is_list(value)
    if kind in (Mapping, dict):
        return isinstance(value, Mapping)
    return kind is not object and isinstance(value, kind)


def _is_of_lists(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Sequence) and kind is not str


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_number(value: Any, kind: type) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        return False
    return math.isfinite(value)


def _described(kind: Any, name: str) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if kind in (int, float):
        return f"a {'whole ' if kind is int else ''}number {BOUNDS.get(name, FROM_0).text}"
    if _is_of_lists(get_origin(kind) or kind):
        return "a list"
    one_line = " of one line" if name == "name" else ""
    named = {NoneType: "null", str: f"text{one_line} (quote it)", bool: "true or false", Mapping: "a mapping"}
    if (origin := get_origin(kind) or kind) in named:
        return named[origin]
    if kind is object:
        return "a choice of its group, which names a _target_"
    return f"a {kind.__name__} (in conf/ a mapping that names a _target_)"


def _shown(value: Any) -> str:
    words = {True: "true", False: "false", None: "null"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
