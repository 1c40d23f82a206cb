"""Dataclasses to what JSON holds, and back with every key and type checked.

Fields may be numbers, str, Literal, None, dataclasses, `X | Y` of these, and Mapping[str, X], Sequence[X] and tuples of
fixed length of them. Of several dataclasses in one union, Literal fields tell which one is meant, or else its keys.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

T = TypeVar("T")
LEFT_OUT = {"left out where None": True}  # metadata of a field that is absent from the JSON where it is None


class MalformedError(ValueError):
    """A value that does not fit the type; the message names its key, and what should stand there."""


def to_json(value: Any) -> Any:
    """Dataclasses and mappings as dicts, sequences as lists, all the way down."""
    if dataclasses.is_dataclass(value):
        values = {each: getattr(value, each.name) for each in dataclasses.fields(value)}
        return {each.name: to_json(v) for each, v in values.items() if v is not None or each.metadata != LEFT_OUT}
    if isinstance(value, Mapping):
        return {name: to_json(item) for name, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def from_json(cls: type[T], value: object) -> T:
    """A dataclass out of what JSON holds. A key may be missing where its field has a default; further keys are ignored.

    Raises:
        MalformedError: a key is missing, or a value is of another type.
    """
    return _typed(cls, value, "")


def _typed(hint: Any, value: Any, key: str) -> Any:
    """`value` as the annotation `hint` asks for; `key` is its path."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in options:
            return None
        meant = [option for option in options if option is not types.NoneType]
        if len(meant) > 1:
            meant = [option for option in meant if _is_meant(option, value)]
        if meant:
            return _typed(meant[0], value, key)
    elif dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _typed_fields(hint, value, key)
    elif origin is Mapping and isinstance(value, dict):
        return {name: _typed(options[1], item, f"{key}.{name}") for name, item in value.items()}
    elif origin is Sequence and isinstance(value, (list, tuple)):
        return [_typed(options[0], item, f"{key}[{index}]") for index, item in enumerate(value)]
    elif origin is tuple and isinstance(value, (list, tuple)) and len(value) == len(options):
        return tuple(_typed(option, item, key) for option, item in zip(options, value, strict=True))
    elif (origin is Literal and value in options) or type(value) is hint or (hint is float and type(value) is int):
        return value
    raise MalformedError(f"{key or 'it'} must be {_described(hint)}, not {str(value)[:40]!r}")


def _typed_fields(cls: Any, values: Mapping[str, Any], key: str) -> Any:
    hints, given = typing.get_type_hints(cls), {}
    for each in dataclasses.fields(cls):
        path = f"{key}.{each.name}".removeprefix(".")
        if each.name in values:
            given[each.name] = _typed(hints[each.name], values[each.name], path)
        elif each.default is dataclasses.MISSING:
            raise MalformedError(f"the key {path} is missing")
    return cls(**given)


def _is_meant(cls: Any, value: Any) -> bool:
    """Whether `value` is of this one of several dataclasses; not yet, whether it is complete."""
    literals = _literals(cls)
    return (
        isinstance(value, dict)
        and all(value.get(name) in known for name, known in literals.items())
        and (bool(literals) or any(name in value for name in _needed(cls)))
    )


def _literals(cls: Any) -> dict[str, tuple[Any, ...]]:
    hints = typing.get_type_hints(cls)
    return {name: typing.get_args(hint) for name, hint in hints.items() if typing.get_origin(hint) is Literal}


def _needed(cls: Any) -> list[str]:
    return [each.name for each in dataclasses.fields(cls) if each.default is dataclasses.MISSING]


def _described(hint: Any) -> str:
    """A type in words."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_described, options))
    if origin is Literal:
        return " or ".join(map(repr, options))
    if origin is tuple:
        return f"a list of {len(options)}"
    if dataclasses.is_dataclass(hint):
        literals = [f"{name} {' or '.join(map(repr, known))}" for name, known in _literals(hint).items()]
        return f"an object with {', '.join(literals or _needed(hint)[:1])}"
    names = {float: "a number", int: "a whole number", str: "text", types.NoneType: "null", Sequence: "a list"}
    return names.get(origin or hint, "an object")
