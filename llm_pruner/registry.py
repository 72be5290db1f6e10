"""Open registries: names for objects of this package and of others.

Another package adds an object by an entry point, in its pyproject.toml

    [project.entry-points."llm_pruner.criteria"]
    mine = "my_package.mine:Mine"

or while it runs: `CRITERIA.register("mine", Mine)`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from llm_pruner.errors import UsageError, did_you_mean, shown

# as YAML has them
TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Registry:
    """Objects by name: as they are, as `"module:attribute"` that is imported when it is asked for, or entry points.

    Args:
        group: The entry points' group, such as `llm_pruner.criteria`.
        what: What an object is called in messages.
        builtin: {name: object or "module:attribute"}.
    """

    def __init__(self, group: str, what: str, builtin: dict[str, Any] | None = None) -> None:
        self.group, self.what = group, what
        self._objects: dict[str, Any] = dict(builtin or {})

    def register(self, name: str, value: Any = None) -> Any:
        """Add an object, or decorate it. ValueError when the name is another object's."""
        if value is None:
            return lambda decorated: self.register(name, decorated)
        known = self._objects.get(name)
        if known not in (None, value) and self._location(known) != self._location(value):
            raise ValueError(f"{self.what} {name!r} is registered already")
        self._objects[name] = value
        return value

    def names(self) -> list[str]:
        """Return the names of all objects, without importing them."""
        return sorted({*self._objects, *_entry_points(self.group)})

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self._objects or name in _entry_points(self.group)

    def get(self, name: str) -> Any:
        """Return the object called `name`.

        Raises:
            UsageError: There is none, with a suggestion, or it cannot be imported.
        """
        if name in self._objects:
            value = self._objects[name]
            if isinstance(value, str):
                module, _, attribute = value.partition(":")
                value = self._objects[name] = getattr(import_module(module), attribute)
            return value
        if name not in _entry_points(self.group):
            raise UsageError(f"unknown {self.what} {name!r}; {did_you_mean(name, self.names())}")
        point = _entry_points(self.group)[name]
        try:
            return point.load()
        except Exception as error:
            # whatever another package's import raises
            raise UsageError(
                f"{self.what} {name!r}, of the entry point {point.value}, cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error

    def make(self, text: str, given: Mapping[str, Any] | None = None, usual: Mapping[str, Any] | None = None) -> Any:
        """Return an instance of the dataclass that `text` names. Its fields are its options.

        Args:
            text: A name, perhaps with options: `flap:metrics=IFV`.
            given: {option: value} from elsewhere, of which those that are None count as not given.
            usual: {option: value} for classes that have such an option and are not given another value.

        Raises:
            UsageError: There is no such name, or it has no such option or value.
        """
        name, _, told = text.partition(":")
        values = {option: value for option, value in (given or {}).items() if value is not None}
        for part in filter(None, told.split(",")):
            option, value = (word.strip() for word in part.partition("=")[::2])
            if option in values:
                raise UsageError(f"{self.what} {shown(text)}: {option} is given twice; leave one of them out")
            values[option] = value
        made = self.get(name)
        known = {own.name for own in fields(made)}
        for option in values:
            if option not in known:
                raise UsageError(f"{self.what} {name} has no option {shown(option)}; leave it out")
        values = {option: value for option, value in (usual or {}).items() if option in known} | values
        kinds = _kinds(made)
        read = {
            option: _read(option, value, kinds[option]) if isinstance(value, str) else value
            for option, value in values.items()
        }
        return made(**read)

    @staticmethod
    def _location(value: Any) -> Any:
        return value if isinstance(value, str) else f"{value.__module__}:{getattr(value, '__qualname__', id(value))}"


def _kinds(made: type) -> dict[str, Any]:
    """The types of a dataclass's fields, as they are annotated."""
    try:
        return get_type_hints(made)
    except NameError:
        # an annotation names what only type checkers import
        return {own.name: type(own.default) for own in fields(made)}


def _read(option: str, text: str, kind: Any) -> Any:
    """An option's value from text, as its type says. UsageError where the text is no such value."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    legal = []
    for own in sorted(kinds, key=(str, NoneType).__contains__):
        words, read = _reader(own)
        try:
            return read(text)
        except (ValueError, KeyError):
            legal += [words] if words else []
    raise UsageError(f"{option}: {shown(text)} is not {' or '.join(legal) or 'what it takes, which is no text'}")


def _reader(kind: Any) -> tuple[str, Callable[[str], Any]]:
    """(what is legal, in words, what makes a value of text): it raises a ValueError or a KeyError for other text."""
    if get_origin(kind) is Literal:
        named = {str(value): value for value in get_args(kind)}
        return f"one of {', '.join(named)}", named.__getitem__
    known: dict[Any, tuple[str, Callable[[str], Any]]] = {
        bool: ("true or false", lambda text: TRUTHS[text.lower()]),
        int: ("a whole number", int),
        float: ("a number", _finite),
        str: ("text", str),
        Path: ("a path", Path),
        NoneType: ("", lambda text: {"null": None, "none": None}[text.lower()]),
    }
    no_text: dict[str, Any] = {}
    return known.get(kind, ("", no_text.__getitem__))


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


@cache
def _entry_points(group: str) -> dict[str, Any]:
    # slow, and nothing that only shows help needs it
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=group)}


def forget_entry_points() -> None:
    """Look the entry points up again, of packages that came since."""
    _entry_points.cache_clear()
