"""Options as fields of a frozen dataclass, and their values as a YAML or a flag says them. Imports nothing heavy.

A string of the YAML stays a string: `5e-1`, which YAML 1.1 reads as text, is refused, not guessed at.
"""

import math
from collections.abc import Mapping
from dataclasses import Field, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin

from llm_pruner.errors import UsageError, did_you_mean

LEGAL = {float: "a number such as 0.5", int: "a whole number", bool: "true or false", str: "text", tuple: "names"}


def option(
    default: Any, group: str, help: str, metavar: str | None = None, choices: tuple[str, ...] | None = None,
    least: float | None = None, legal: str | None = None,
):  # fmt: skip
    """A field with its flag's section and help; `least` and `choices` bound its values, `legal` says them in words."""
    told = {"group": group, "help": help, "metavar": metavar, "choices": choices, "least": least, "legal": legal}
    return field(default=default, metadata=told)


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
            return tuple(names)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is kind and kind is not tuple:
        return value
    legal = f.metadata["legal"] or LEGAL[kind]
    raise UsageError(f"{f.name}: {value!r} is {type(value).__name__}, it must be {legal}")


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
    """UsageError for a value of the wrong type, one that is not among its choices, or one that is too small."""
    for name, f in fields_of(type(options)).items():
        value, choices, least = typed(f, getattr(options, name)), f.metadata["choices"], f.metadata["least"]
        if value is None:
            continue
        if choices and value not in choices:
            raise UsageError(f"{name}: {value!r}; {did_you_mean(value, choices)}")
        if least is not None and not value >= least:
            kind = "a whole number" if kind_of(f) is int else "a number"
            raise UsageError(f"{name}: {value} must be {kind} of at least {least:g}")


def read_yaml(path: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping of the names in `known`: fields, or mappings of fields for a section of its own.

    UsageError, with the line, for unknown or duplicate keys, values of the wrong type, and odd tags.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{line}: {getattr(error, 'problem', None) or 'not YAML'}") from error
    except ValueError as error:  # a tagged scalar that is no such value
        raise UsageError(f"{path}: {error}") from error
    if root is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path} must be a mapping of option names to values")
    _check_section(path, root, values, known)
    return values


def _check_section(path: str, section, values: dict, known: Mapping[str, Any]) -> None:
    seen = set()
    for key, value in section.value:
        line = f"{path}, line {key.start_mark.line + 1}"
        if key.value not in known:
            raise UsageError(f"{line}: unknown option {key.value!r}; {did_you_mean(key.value, known)}")
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
            raise UsageError(f"{line}: {key.value}: {value.value!r} is not a number that can be meant")


def _yaml_hint(value: Any) -> str:
    if isinstance(value, str):
        try:
            return f" (YAML reads {value} as text; write {float(value)!r})"
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
