"""Numbers as people read them."""

import json
import math
from collections.abc import Callable
from typing import Any

NOT_FINITE, UNKNOWN = "not finite", "–"


def finite(*values: float | None) -> bool:
    """Return whether all of the numbers are known and finite."""
    return all(value is not None and math.isfinite(value) for value in values)


def number(value: float | None) -> str:
    """Return whole numbers in full, others with four significant digits; thousands are separated."""
    if value is None or not math.isfinite(value):
        return NOT_FINITE
    if isinstance(value, int) or value == 0:
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        return f"{value:.3g}"
    return f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"


def size(value: float) -> str:
    """Return bytes in the unit that fits: 2.02 MB."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit:
            return f"{value / unit:.3g} {name}" if value < 999.5 * unit else f"{value / unit:,.0f} {name}"
    return f"{value:,.0f} bytes"


def duration(seconds: float) -> str:
    """Return seconds, minutes or hours: 20.0 ms, 1.5 s, 2 min 5 s, 1 h 0 min."""
    if 0 < seconds < 1:
        return f"{1000 * seconds:,.1f} ms"
    if seconds < 60:
        return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def percent(share: float | None) -> str:
    """Return a share in percent."""
    return NOT_FINITE if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def times(factor: float) -> str:
    """Return a ratio: ×1.002, ×0.38, ×2.10, ×73.3."""
    if not math.isfinite(factor):
        return NOT_FINITE
    digits = 3 if 0.9 < factor < 1.1 else max(0, 2 - max(0, math.floor(math.log10(factor)))) if factor > 0 else 2
    return f"×{factor:,.{digits}f}"


def known(value: Any, how: Callable[[Any], str] = number) -> str:
    """Return the value as `how` writes it, a dash where there is none."""
    return UNKNOWN if value is None else how(value)


def span(values: int | list[int] | None) -> str:
    """Return a width, or the least and the largest of those of the layers."""
    if values is None:
        return UNKNOWN
    every = values if isinstance(values, list) else [values]
    return f"{every[0]:,}" if min(every) == max(every) else f"{min(every):,}–{max(every):,}"


def plural(count: int, noun: str) -> str:
    """Return a number of things: 1 model, 3 models."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def anything(value: Any) -> str:
    """Return any value of a report as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and 1e-4 <= abs(value) < 1e3:
        return f"{value:.4g}"
    if value is None or isinstance(value, int | float):
        return number(value)
    if isinstance(value, list | tuple) and not any(isinstance(each, dict | list) for each in value):
        return ", ".join(map(anything, value)) or "none"
    return json.dumps(value, default=str)
