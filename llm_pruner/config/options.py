"""Options as fields of frozen dataclasses, and their values from a YAML file or a flag. Imports nothing heavy.

A string of the YAML stays a string: `5e-1`, which YAML 1.1 reads as text, is refused, not guessed at.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar, dataclass_transform

from llm_pruner.config.yaml_files import read_yaml_nodes
from llm_pruner.errors import UsageError, did_you_mean, shown

T = TypeVar("T")
LEGAL = {float: "a number such as 0.5", int: "a whole number", bool: "true or false", str: "text", tuple: "names"}


@dataclass(frozen=True)
class BaseOptions:
    """What the options of every command can do."""

    def asdict(self) -> dict[str, Any]:
        """Return {option: value}."""
        return {name: getattr(self, name) for name in fields_of(type(self))}


def option(
    default: Any,
    group: str,
    help: str,
    metavar: str | None = None,
    *,
    kind: type = str,
    choices: tuple[str, ...] | None = None,
    least: float | None = None,
    most: float | None = None,
    legal: str | None = None,
    common: bool = False,
) -> Any:
    """Return a dataclass field that is an option.

    Args:
        default: Its default.
        group: The section of the help that it stands in.
        help: What it does.
        metavar: What the help calls its value.
        kind: bool, int, float, str, or tuple (of str).
        choices: Its legal values.
        least: The smallest legal value.
        most: The largest legal value.
        legal: What is legal, in words.
        common: Whether `--help` shows it; `--help all` shows every option.
    """
    told = {"group": group, "help": help, "metavar": metavar, "kind": kind, "choices": choices, "legal": legal}
    return field(default=default, metadata=told | {"least": least, "most": most, "common": common})


@dataclass_transform(frozen_default=True)
def command_options(**changes: Mapping[str, Any]) -> Callable[[type[T]], type[T]]:
    """Decorate the options of a command: a frozen dataclass of its groups, some of whose options are told otherwise.

    Args:
        changes: {name of an option of a group: its default, or whatever else `option` takes, in this command}.
    """

    def decorate(cls: type[T]) -> type[T]:
        declared = {f.name: f for base in cls.__bases__ for f in fields(base)}
        for name, change in changes.items():
            known = declared[name]
            told = {**known.metadata, **{key: value for key, value in change.items() if key != "default"}}
            setattr(cls, name, field(default=change.get("default", known.default), metadata=told))
            cls.__annotations__[name] = known.type
        return dataclass(frozen=True)(cls)

    return decorate


def fields_of(options_class: type) -> dict[str, Field]:
    """Return the fields that are options, by name."""
    return {f.name: f for f in fields(options_class) if f.metadata}


def kind_of(f: Field) -> type:
    """Return bool, int, float, str, or tuple (of str)."""
    return f.metadata["kind"]


def typed(f: Field, value: Any) -> Any:
    """Return `value` as the type of `f`. UsageError with the value and what is legal."""
    kind = kind_of(f)
    if value is None and f.default is None:
        return None
    if kind is tuple and isinstance(value, str | list | tuple):
        names = [value] if isinstance(value, str) else value
        if all(isinstance(name, str) for name in names):
            return tuple(_worded(f, name) for name in names)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise UsageError(f"{f.name}: {shown(value)} is too large for a number") from None
    if isinstance(value, str) and kind is str:
        return _worded(f, value)
    if type(value) is kind and kind not in (str, tuple):
        return value
    legal = f.metadata["legal"] or LEGAL[kind]
    raise UsageError(f"{f.name}: {shown(value)} is {type(value).__name__}, it must be {legal}")


def _worded(f: Field, text: str) -> str:
    """The text itself. UsageError where it says nothing: a variable of a script that was not set."""
    if not text.strip():
        raise UsageError(f"{f.name} is blank; give it a value or leave it out")
    if "\0" in text:
        raise UsageError(f"{f.name}: {shown(text)} has a NUL character in it, which no name has")
    return text


def parse_flag(f: Field, text: Any) -> Any:
    """Return the value of a flag's text. UsageError with the value and what is legal."""
    kind = kind_of(f)
    if kind in (str, tuple):
        return typed(f, text)
    try:
        return kind(text)
    except ValueError:
        return typed(f, text)


def check_values(options: Any) -> None:
    """Raise a UsageError for a value of the wrong type, one that is not among its choices, too small or too large."""
    for name, f in fields_of(type(options)).items():
        value, told = typed(f, getattr(options, name)), f.metadata
        if value is None:
            continue
        if told["choices"] and value not in told["choices"]:
            raise UsageError(f"{name}: {shown(value)}; {did_you_mean(value, told['choices'])}")
        least, most = told["least"], told["most"]
        kind = "a whole number" if kind_of(f) is int else "a number"
        if least is not None and not value >= least:
            raise UsageError(f"{name}: {shown(value)} must be {kind} of at least {least:g}")
        if most is not None and not value <= most:
            raise UsageError(f"{name}: {shown(value)} must be {kind} of at most {most:,}")


def read_yaml(path: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping of the names in `known`: fields, or mappings of fields for a section of its own.

    UsageError, with the line, for unknown or duplicate keys, values of the wrong type, odd tags, and what is not
    within the bounds of `read_yaml_nodes`.
    """
    # a file names no other
    known = {name: own for name, own in known.items() if name != "config"}
    root, values = read_yaml_nodes(path, "`config`")
    if root is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"`config` {path} must be a mapping of option names to values")
    _check_section(f"`config` {path}", root, values, known)
    return values


def _check_section(path: str, section: Any, values: dict, known: Mapping[str, Any]) -> None:
    seen = set()
    for key, value in section.value:
        line = f"{path}, line {key.start_mark.line + 1}"
        if key.tag != "tag:yaml.org,2002:str" or key.value not in known:
            raise UsageError(f"{line}: unknown option {shown(key.value)}; {did_you_mean(key.value, known)}")
        if key.value in seen:
            raise UsageError(f"{line}: {key.value!r} is set twice")
        seen.add(key.value)
        given = values[key.value]
        if isinstance(known[key.value], Mapping):
            if given is None:
                values[key.value] = given = {}
            if not isinstance(given, dict):
                raise UsageError(f"{line}: {key.value} must be a mapping of option names to values")
            if given:
                _check_section(path, value, given, known[key.value])
            continue
        try:
            typed(known[key.value], given)
        except UsageError as error:
            raise UsageError(f"{line}: {error}{_yaml_hint(given)}") from None
        if isinstance(given, float) and math.isnan(given):
            raise UsageError(f"{line}: {key.value}: {shown(value.value)} is not a number that can be meant")


def _yaml_hint(value: Any) -> str:
    if isinstance(value, str):
        try:
            return f" (YAML reads {shown(value)} as text; write {float(value)!r})"
        except ValueError:
            pass
    return ""


def resolved(options_class: type[T], flags: dict[str, Any], yaml_file: str | None = None) -> T:
    """Return the options: defaults < YAML < flags. For a command whose options replace one another one by one.

    Args:
        options_class: The dataclass.
        flags: Only those that were given.
        yaml_file: A YAML file with options.

    Raises:
        UsageError: A value is wrong; the message has it, and the line of the YAML.
    """
    known = fields_of(options_class)
    values = (read_yaml(yaml_file, known) if yaml_file else {}) | flags
    options = options_class(**{name: typed(known[name], value) for name, value in values.items()})
    check_values(options)
    return options
