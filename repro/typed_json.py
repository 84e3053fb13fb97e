"""JSON objects as dataclasses and back, byte for byte: what is unknown, lacking or of another type is said."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class MisfitError(Exception):
    """A JSON object is not of the form that is expected."""


LATER = {"later": True}
"""Metadata of a field that some objects lack: it has its default then, and is not written."""


class Absent(Enum):
    """Default of such a field that may be null where it is there."""

    ABSENT = "absent"


INLINE = {"inline": True}
"""Metadata of a field whose own fields stand beside the others of the object that holds it."""


def decoded(kind: type[T], value: Any, place: str = "") -> T:
    """The dataclass `kind` made of a JSON object; raises MisfitError that names the place in it."""
    if not isinstance(value, dict):
        raise MisfitError(f"{place or 'it'} is not an object")
    if unknown := sorted(value.keys() - _names(kind)):
        raise MisfitError(f"{place or 'it'} has unknown {', '.join(unknown)}")
    return kind(**{part.name: _part(part, value, place) for part in _plan(kind)})


def misfit(kind: type, value: dict[str, Any], place: str = "") -> str | None:
    """The first number, text or switch that is of another type, in an object or in those inside it.

    None where all that are there fit; what lacks is not looked for, and an object or a list may be null.
    """
    try:
        for part in _plan(kind):
            inside = _object_kind(part.kind)
            if part.inline:
                found = misfit(part.kind, value, place)
            elif inside is not None and isinstance(value.get(part.name), dict):
                found = misfit(inside, value[part.name], f"{place}{part.name}.")
            else:
                found = None
                null = get_origin(part.kind) in (list, dict) and value.get(part.name) is None
                if part.name in value and _is_plain(part.kind) and not null:
                    _value(part.kind, value[part.name], f"{place}{part.name}")
            if found:
                return found
    except MisfitError as error:
        return str(error)
    return None


def _kinds(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (UnionType, Union) else (kind,)


def _object_kind(kind: Any) -> type | None:
    """The dataclass that a type is, or may be; None for others."""
    return next((one for one in _kinds(kind) if is_dataclass(one)), None)


def _is_plain(kind: Any) -> bool:
    """Whether a type is a number, a text or a switch, none of them, or a list or an object of such."""
    if get_origin(kind) in (list, dict):
        return all(map(_is_plain, get_args(kind)))
    return all(one in (str, int, float, bool, NoneType) for one in _kinds(kind))


def encoded(value: Any) -> Any:
    """The JSON-able form of a dataclass, its fields in their order."""
    if isinstance(value, list | tuple):
        return [encoded(entry) for entry in value]
    if isinstance(value, dict):
        return {key: encoded(entry) for key, entry in value.items()}
    if not is_dataclass(value):
        return value
    found: dict[str, Any] = {}
    for part in _plan(type(value)):
        content = getattr(value, part.name)
        if part.inline:
            found |= encoded(content)
        elif not part.later or content is not part.default:
            found[part.name] = encoded(content)
    return found


@dataclass(frozen=True)
class _Part:
    name: str
    kind: Any
    later: bool
    inline: bool
    default: Any


@cache
def _plan(kind: type) -> tuple[_Part, ...]:
    """Fields in the order of their declaration, which is that of the JSON object."""
    kinds = get_type_hints(kind)
    return tuple(
        _Part(part.name, kinds[part.name], "later" in part.metadata, "inline" in part.metadata, part.default)
        for part in fields(kind)
    )


@cache
def _names(kind: type) -> frozenset[str]:
    """Names that an object of this kind may have."""
    parts = _plan(kind)
    own = {part.name for part in parts if not part.inline}
    return frozenset(own.union(*(_names(part.kind) for part in parts if part.inline)))


@cache
def required(kind: type) -> frozenset[str]:
    """Names that every object of this kind has."""
    parts = _plan(kind)
    own = {part.name for part in parts if not part.inline and not part.later}
    return frozenset(own.union(*(required(part.kind) for part in parts if part.inline)))


def _part(part: _Part, value: dict[str, Any], place: str) -> Any:
    if part.inline:
        return decoded(part.kind, {name: value[name] for name in value.keys() & _names(part.kind)}, place)
    if part.name in value:
        return _value(part.kind, value[part.name], f"{place}.{part.name}" if place else part.name)
    if part.later:
        return part.default
    raise MisfitError(f"{place or 'it'} lacks {part.name}")


def _value(kind: Any, value: Any, place: str) -> Any:
    if kind is Any:
        return value
    if is_dataclass(kind):
        return decoded(kind, value, place)
    origin = get_origin(kind) or kind
    if origin in (UnionType, Union):
        return _one_of(get_args(kind), value, place)
    if origin is dict and isinstance(value, dict):
        inside = (get_args(kind) or (str, Any))[1]
        return {key: _value(inside, entry, f"{place}.{key}") for key, entry in value.items()}
    if origin is list and isinstance(value, list):
        (inside,) = get_args(kind) or (Any,)
        return [_value(inside, entry, f"{place}[{number}]") for number, entry in enumerate(value)]
    allowed = (int, float) if origin is float else origin  # JSON has one kind of number
    if not isinstance(value, allowed) or (isinstance(value, bool) and origin is not bool):
        raise MisfitError(f"{place} is {value!r}, not of type {getattr(origin, '__name__', origin)}")
    return value


def _one_of(kinds: tuple[Any, ...], value: Any, place: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    *others, last = [kind for kind in kinds if kind not in (NoneType, Absent)]
    for kind in others:
        try:
            return _value(kind, value, place)
        except MisfitError:
            continue
    return _value(last, value, place)
