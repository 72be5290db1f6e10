"""What fields may hold, as data: one way to check config.json, reports, plans, methods and requests.

A schema is a mapping from field names to rules. A rule is a function from a value to what is legal instead, in words,
or None where the value is legal.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_pruner.errors import PrunerError, UsageError, did_you_mean, shown

Rule = Callable[[Any], str | None]


def whole(low: int = 0, high: int | None = None) -> Rule:
    """Return the rule for a whole number in [low, high]."""
    legal = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high:,}"
    return lambda value: None if type(value) is int and value >= low and (high is None or value <= high) else legal


def number(low: float = -math.inf, high: float = math.inf, above: bool = False) -> Rule:
    """Return the rule for a finite number in [low, high], or in (low, high] with `above`."""
    bounds = []
    if low > -math.inf:
        bounds.append(f"above {low:g}" if above else f"of at least {low:g}")
    if high < math.inf:
        bounds.append(f"at most {high:g}")
    legal = " ".join(["a finite number", " and ".join(bounds)]).strip()

    def rule(value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            return legal
        return None if (value > low if above else value >= low) and value <= high else legal

    return rule


def text(value: Any) -> str | None:
    """Accept text."""
    return None if isinstance(value, str) else "text"


def path(value: Any) -> str | None:
    """Accept a path, or text that names one."""
    return None if isinstance(value, str | Path) else "a path"


def truth(value: Any) -> str | None:
    """Accept true or false."""
    return None if isinstance(value, bool) else "true or false"


def mapping(value: Any) -> str | None:
    """Accept a mapping."""
    return None if isinstance(value, dict) else "a mapping"


def one_of(known: Sequence[str]) -> Rule:
    """Return the rule for one of some names."""

    def rule(value: Any) -> str | None:
        if isinstance(value, str) and value in known:
            return None
        return f"one of {', '.join(known)}" if len(known) <= 8 else f"a known name; {did_you_mean(value, known)}"

    return rule


def list_of(rule: Rule) -> Rule:
    """Return the rule for a list, each value as `rule` says."""

    def check(value: Any) -> str | None:
        if not isinstance(value, list):
            return "a list"
        wrong = next((legal for each in value if (legal := rule(each))), None)
        return wrong and f"a list, each {wrong}"

    return check


def each(rule: Rule) -> Rule:
    """Return the rule for a mapping whose every value is as `rule` says."""

    def check(value: Any) -> str | None:
        if not isinstance(value, dict):
            return "a mapping"
        wrong = next(((name, legal) for name, one in value.items() if (legal := rule(one))), None)
        return wrong and f"a mapping whose {shown(wrong[0])} is {wrong[1]}, not {shown(value[wrong[0]])}"

    return check


def filled(rule: Rule) -> Rule:
    """Return the rule for a list of at least one value, each as `rule` says."""
    return lambda value: "a list of at least one value" if value == [] else list_of(rule)(value)


def fields(schema: Mapping[str, Rule], required: Sequence[str] = (), others: bool = True) -> Rule:
    """Return the rule for a mapping of fields.

    Args:
        schema: {field: its rule}.
        required: Fields that must be there.
        others: Whether there may be fields without a rule.
    """

    def rule(value: Any) -> str | None:
        if not isinstance(value, dict):
            return "a mapping"
        if missing := next((name for name in required if name not in value), None):
            return f"a mapping that has {missing}"
        if not others and (more := next((name for name in value if name not in schema), None)) is not None:
            return f"a mapping without {shown(more)}"
        wrong = next(((name, legal) for name in value if name in schema and (legal := schema[name](value[name]))), None)
        return wrong and f"a mapping whose {wrong[0]} is {wrong[1]}, not {shown(value[wrong[0]])}"

    return rule


def maybe(rule: Rule) -> Rule:
    """Return the rule for null, or what `rule` accepts."""
    return lambda value: None if value is None else (legal := rule(value)) and f"{legal}, or null"


def either(*rules: Rule) -> Rule:
    """Return the rule for a value that one of several rules accepts."""

    def rule(value: Any) -> str | None:
        found = [one(value) for one in rules]
        return None if None in found else " or ".join(filter(None, found))

    return rule


def check(
    values: Any, schema: Mapping[str, Rule], where: str, required: Sequence[str] = (),
    error: type[PrunerError] = UsageError,
) -> None:  # fmt: skip
    """Check the fields that are there by their rules; fields without a rule are as they are.

    Args:
        values: {field: value}, of a file or an object.
        schema: The rules, by field.
        where: The file or the object, for the message.
        required: Fields that must be there.
        error: The exception to raise.

    Raises:
        PrunerError: `error`, with the file, the field, its value and what is legal.
    """
    if not isinstance(values, dict):
        raise error(f"{where} must be a mapping of fields to values, not {type(values).__name__}")
    for name in required:
        if name not in values:
            raise error(f"{where} has no {name}")
    for name, rule in schema.items():
        if name in values and (legal := rule(values[name])):
            raise error(f"{where}: {name}: {shown(values[name])} must be {legal}")
