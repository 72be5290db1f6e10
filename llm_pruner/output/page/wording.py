"""Numbers as people read them."""

import math
from collections.abc import Callable

NOT_FINITE, UNKNOWN = "not finite", "–"


def number(value: float | None) -> str:
    """Whole numbers in full, others with four significant digits; thousands are separated."""
    if value is None or not math.isfinite(value):
        return NOT_FINITE
    if isinstance(value, int) or value == 0:
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        return f"{value:.3g}"
    return f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"


def short(value: float, largest: float) -> str:
    """For the ticks of an axis, which are round, in the unit of the `largest`: 1.5M, 20k, 0.05, 1e−6."""
    text = f"{value:.6g}"
    for least, unit, letter in ((1e12, 1e12, "T"), (1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value and largest >= least:
            text = f"{value / unit:.6g}{letter}"
            break
    if value and largest < 1e-3:
        digits, exponent = f"{value:.4e}".split("e")
        text = f"{float(digits):g}e{int(exponent)}"
    return text.replace("-", "−")


def size(value: float) -> str:
    """Bytes: 2.02 MB."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit:
            return f"{value / unit:.3g} {name}" if value < 999.5 * unit else f"{value / unit:,.0f} {name}"
    return f"{value:,.0f} bytes"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def percent(share: float | None) -> str:
    return NOT_FINITE if share is None else f"{100 * share:.1f} %"


def times(factor: float | None) -> str:
    """A ratio: ×1.002, ×0.38, ×2.10, ×73.3."""
    if factor is None:
        return NOT_FINITE
    return (
        f"×{factor:.3f}" if 0.9 < factor < 1.1 else f"×{factor:,.{max(0, 2 - max(0, math.floor(math.log10(factor))))}f}"
    )


def known(value, how: Callable = number) -> str:
    """What `how` makes of `value`, a dash where there is none."""
    return UNKNOWN if value is None else how(value)


def shortened(text: str, length: int = 28) -> str:
    """A long name without its middle."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[-tail:]}"
