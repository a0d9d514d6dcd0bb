"""Axes of a chart: which range, which ticks, where a value lies in pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Axis", "linear_axis", "log_axis", "number"]

MOST_TICKS = 6
LARGEST = 1e300
"""Beyond it an axis does not go: the width of a range of larger floats is none."""


@dataclass(frozen=True)
class Axis:
    """One axis.

    Args:
        low: value at its beginning; its logarithm to base 10 where `logarithmic`.
        high: value at its end; likewise.
        begin: pixel of `low`.
        end: pixel of `high`.
        ticks: values that are marked, as they are read.
        logarithmic: whether equal lengths are equal ratios.
    """

    low: float
    high: float
    begin: float
    end: float
    ticks: Sequence[float]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value, rounded to a tenth."""
        position = math.log10(value) if self.logarithmic else value
        return round(self.begin + (self.end - self.begin) * ((position - self.low) / (self.high - self.low)), 1)

    @property
    def labels(self) -> list[tuple[float, str]]:
        """(pixel, text) of each tick."""
        return [(self.at(tick), number(tick)) for tick in self.ticks]


def linear_axis(values: Iterable[float], begin: float, end: float, most: int = MOST_TICKS) -> Axis:
    """An axis that holds all values, with at most `most` ticks at round numbers."""
    low, high = _range(values)
    return Axis(low, high, begin, end, _round_numbers(low, high, most))


def log_axis(values: Iterable[float], begin: float, end: float) -> Axis | None:
    """A logarithmic axis that holds all values; None when one of them is not positive."""
    found = list(values)
    if not found or min(found) <= 0:
        return None
    low, high = _range(math.log10(value) for value in found)
    return Axis(low, high, begin, end, _round_ratios(low, high), logarithmic=True)


def _range(values: Iterable[float]) -> tuple[float, float]:
    """Least and greatest with some air; something about a constant."""
    found = list(values) or [0.0]
    low, high = max(min(found), -LARGEST), min(max(found), LARGEST)
    low, high = min(low, LARGEST), max(high, -LARGEST)
    if high - low <= max(1e-12 * max(abs(low), abs(high)), 1 / LARGEST):
        air = abs(high) * 0.1 if abs(high) > 10 / LARGEST else 1.0
        return low - air, high + air
    return low, high


def _round_numbers(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within a range."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12 - math.floor(math.log10(step))) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _round_ratios(low: float, high: float) -> list[float]:
    """Powers of ten within a range of logarithms; 2 and 5 times them where those are few, and round numbers where even these are."""
    first, last = max(math.ceil(low - 1e-9), -300), min(math.floor(high + 1e-9), 300)
    every = max(1, -(-(last - first + 1) // MOST_TICKS))
    powers = [10.0**power for power in range(first, last + 1, every)]
    if len(powers) >= 3:
        return powers
    between = [factor * 10.0**power for power in range(first - 1, last + 1) for factor in (1, 2, 5)]
    low, high = max(low, -300.0), min(high, 300.0)
    found = [value for value in between if low - 1e-9 <= math.log10(value) <= high + 1e-9]
    between = found if len(found) >= 2 else [tick for tick in _round_numbers(10.0**low, 10.0**high, MOST_TICKS) if tick > 0]
    return between or [10.0 ** ((low + high) / 2)]  # so small that no round number of our digits is beside it


def number(value: float) -> str:
    """A number as it is read beside an axis: 0.05, 20k, 1.5M, 1e-06."""
    size = abs(value)
    for limit, unit in ((1e12, ""), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            scale = {"": 1.0, "G": 1e9, "M": 1e6, "k": 1e3}[unit]
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}"
