"""Options as fields of a frozen dataclass, and their values as a YAML or a flag says them. Imports nothing heavy.

A string of the YAML stays a string: `5e-1`, which YAML 1.1 reads as text, is refused, not guessed at.
"""

import math
from collections.abc import Mapping
from dataclasses import Field, field, fields
from typing import Any, get_args, get_origin

from llm_pruner.config.yaml_files import read_yaml_nodes
from llm_pruner.errors import UsageError, did_you_mean, shown

LEGAL = {float: "a number such as 0.5", int: "a whole number", bool: "true or false", str: "text", tuple: "names"}
MOST_SEED = 2**32 - 1  # what numpy's and lm_eval's generators take


def option(
    default: Any, group: str, help: str, metavar: str | None = None, choices: tuple[str, ...] | None = None,
    least: float | None = None, legal: str | None = None, most: float | None = None,
):  # fmt: skip
    """A field with its flag's section and help; `least`, `most` and `choices` bound its values, `legal` says them in
    words."""
    told = {"group": group, "help": help, "metavar": metavar, "choices": choices, "least": least, "legal": legal}
    return field(default=default, metadata=told | {"most": most})


def fields_of(options_class: type) -> dict[str, Field]:
    """The fields that are flags, by name."""
    return {f.name: f for f in fields(options_class) if f.metadata}


def kind_of(f: Field) -> type:
    """bool, int, float, str, or tuple (of str)."""
    kinds = [f.type] if get_origin(f.type) is tuple else get_args(f.type) or [f.type]
    kind = next(t for t in kinds if t is not type(None))
    return get_origin(kind) or kind


def typed(f: Field, value: Any) -> Any:
    """`value` as the type of `f`. UsageError with the value and what is legal."""
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
    if type(value) is kind and kind is not tuple:
        return _worded(f, value) if kind is str else value
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
    """The value of a flag's text. UsageError with the value and what is legal."""
    kind = kind_of(f)
    if kind in (str, tuple):
        return typed(f, text)
    try:
        return kind(text)
    except ValueError:
        return typed(f, text)


def check_values(options: Any) -> None:
    """UsageError for a value of the wrong type, one that is not among its choices, too small or too large."""
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
    """A mapping of the names in `known`: fields, or mappings of fields for a section of its own.

    UsageError, with the line, for unknown or duplicate keys, values of the wrong type, odd tags, and what is not
    within the bounds of `read_yaml_nodes`.
    """
    known = {name: own for name, own in known.items() if name != "config"}  # a file names no other
    root, values = read_yaml_nodes(path, "--config")
    if root is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"--config {path} must be a mapping of option names to values")
    _check_section(f"--config {path}", root, values, known)
    return values


def _check_section(path: str, section, values: dict, known: Mapping[str, Any]) -> None:
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


def resolved(options_class: type, flags: dict[str, Any], yaml_file: str | None = None):
    """Defaults < YAML < flags, for a command whose options replace one another one by one. UsageError."""
    known = fields_of(options_class)
    values = (read_yaml(yaml_file, known) if yaml_file else {}) | flags
    options = options_class(**{name: typed(known[name], value) for name, value in values.items()})
    check_values(options)
    return options
