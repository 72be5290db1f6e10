"""Scales: from values to positions, with ticks at round numbers."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from llm_pruner.output.page.wording import short

ROUND = (1, 2, 5)
WIDE = 5  # the largest of positive values over the smallest from which an axis is logarithmic
TICKS = 9


@dataclass(frozen=True)
class Scale:
    """`low` is drawn at `start`, `high` at `end`; what lies outside is drawn at the nearer of them."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)

    def label(self, tick: float) -> str:
        """How a tick is called; on a linear axis all in the same unit."""
        return short(tick, abs(tick) if self.log else max(map(abs, self.ticks)))


def fitting(values: Iterable[float], start: float, end: float, wide: float = WIDE) -> Scale:
    """Logarithmic where all values are positive and far apart, else linear."""
    values = list(values)
    make = logarithmic if min(values) > 0 and max(values) / min(values) >= wide else linear
    return make(values, start, end)


def linear(values: Iterable[float], start: float, end: float, zero: bool = False, count: int = 5) -> Scale:
    """From a tick to a tick around the values; `zero`: with 0 among them. About `count` steps of 1, 2 or 5 · 10ⁿ."""
    values = [*values, 0.0] if zero else list(values)
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # all alike
        margin = abs(high) / 10 or 1.0
        low, high = (low, high + margin) if zero else (low - margin, high + margin)
    step = _round_up((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(float(f"{place * step:.12g}") for place in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], start, end, ticks)


def logarithmic(values: Iterable[float], start: float, end: float) -> Scale:
    """Between two numbers of the form 1, 2 or 5 · 10ⁿ; ticks at those, or at powers of ten where they are too many."""
    values = list(values)
    exponents = range(math.floor(math.log10(min(values))) - 1, math.ceil(math.log10(max(values))) + 2)
    numbers = [float(f"{digit}e{exponent}") for exponent in exponents for digit in ROUND]
    low = max(number for number in numbers if number <= min(values) * (1 + 1e-9))
    high = min(number for number in numbers if number >= max(values) * (1 - 1e-9) and number > low)
    ticks = [number for number in numbers if low <= number <= high]
    if len(ticks) > TICKS:
        powers = [number for number in ticks if f"{number:e}".startswith("1.000000e")]
        ticks = powers[:: math.ceil(len(powers) / (TICKS - 2))]
    return Scale(low, high, start, end, tuple(ticks), log=True)


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next((digit * power for digit in ROUND if digit * power >= value * (1 - 1e-9)), 10 * power)
