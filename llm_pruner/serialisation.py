"""Frozen dataclasses as JSON: the types of their fields say what is legal, and how it is read and written.

A field is `str`, `bool`, `int`, `float`, `Any`, a dataclass, `list[X]`, `dict[str, X]` or `X | None`;
`Annotated[X, rule]` narrows it by a rule of `validation`. JSON has neither NaN nor infinity: a float that is not finite
is written as null, and null is read as NaN where the rule of the float allows it.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar, Union

from llm_pruner.validation import (
    Rule,
    check,
    each,
    either,
    fields,
    list_of,
    maybe,
    number,
    text,
    truth,
    whole,
)

PLAIN: dict[Any, Rule] = {
    Any: lambda value: None, str: text, bool: truth, int: whole(-(2**63), 2**63), float: number(),
}  # fmt: skip
T = TypeVar("T")


def optional() -> Any:
    """Return a field of None that JSON leaves out while it is None, or empty."""
    return dataclasses.field(default=None, metadata={"absent": True})


def or_empty() -> Any:
    """Return a field of None that JSON has as `{}`."""
    return dataclasses.field(default=None, metadata={"none": {}})


def read(kind: type[T], value: Any, where: str) -> T:
    """Check a mapping and build the dataclass from it; fields that the dataclass does not have are ignored.

    Args:
        kind: The dataclass.
        value: What the JSON file holds.
        where: The file, for the message.

    Raises:
        UsageError: A field is missing, or its value is illegal.
    """
    rules, required = schema(kind)  # type: ignore[arg-type]  # of T; a class is hashable
    check(value, rules, where, required)
    return _built(kind, value)


def plain(value: Any) -> Any:
    """Return what JSON can hold of a value: mappings, lists, text, and numbers that are finite.

    Of a dataclass that is its fields, and what its class has under the names in `CONSTANTS`.
    """
    if dataclasses.is_dataclass(value):
        found = {name: getattr(value, name) for name in getattr(value, "CONSTANTS", ())}
        for field in dataclasses.fields(value):
            given = getattr(value, field.name)
            own = field.metadata.get("none") if given is None else plain(given)
            if not (field.metadata.get("absent") and (given is None or own in ({}, []))):
                found[field.name] = own
        return found
    if isinstance(value, Mapping):
        return {name: plain(own) for name, own in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@functools.cache
def schema(kind: Any) -> tuple[dict[str, Rule], tuple[str, ...]]:
    """Return the rules of a dataclass's fields, and the names of those that have no default."""
    rules = {name: _rule(hint) for name, hint in _hints(kind).items()}
    missing = dataclasses.MISSING
    own = dataclasses.fields(typing.get_origin(kind) or kind)
    required = tuple(field.name for field in own if field.default is missing and field.default_factory is missing)
    return rules, required


@functools.cache
def _rule(kind: Any) -> Rule:
    if kind in PLAIN:
        return PLAIN[kind]
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return inside[1]
    if origin in (Union, types.UnionType):
        rule = either(*(_rule(one) for one in inside if one is not type(None)))
        if any(dataclasses.is_dataclass(one) for one in inside):
            return maybe(lambda value: None if value == {} else rule(value))
        return maybe(rule) if type(None) in inside else rule
    if origin in (list, dict):
        return (list_of if origin is list else each)(_rule(inside[-1]))
    return fields(*schema(kind))


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, with what a generic one is of in the place of its variable."""
    origin = typing.get_origin(kind) or kind
    given = dict(zip(getattr(origin, "__parameters__", ()), typing.get_args(kind)))
    names = [field.name for field in dataclasses.fields(origin)]
    hints = typing.get_type_hints(origin, include_extras=True)

    def filled(hint: Any) -> Any:
        open_ones = getattr(hint, "__parameters__", ())
        return given.get(hint, hint[tuple(given[one] for one in open_ones)] if open_ones and given else hint)

    return {name: filled(hints[name]) for name in names}


def _built(kind: Any, value: Any) -> Any:
    """The value, which is legal, as an object of its type."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return math.nan if inside[0] is float and value is None else _built(inside[0], value)
    if origin in (Union, types.UnionType):
        if value == {} and any(dataclasses.is_dataclass(one) for one in inside):
            return None
        fitting = [one for one in inside if one is not type(None) and _rule(one)(value) is None]
        return _built(fitting[0], value) if fitting else None
    if origin is list:
        return [_built(inside[0], own) for own in value]
    if origin is dict:
        return {name: _built(inside[1], own) for name, own in value.items()}
    if dataclasses.is_dataclass(origin or kind):
        given = {name: _built(own, value[name]) for name, own in _hints(kind).items() if name in value}
        return (origin or kind)(**given)
    return value
