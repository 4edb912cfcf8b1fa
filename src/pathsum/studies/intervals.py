"""Intervals of few seeds: Student's t, exact for every number of them, and differences that are paired by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from pathsum.errors import PathsumError

HALVINGS = 200  # of an interval of length π/2: more than a float has bits


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval; infinite ends where one value alone says nothing of spread."""

    mean: float
    low: float
    high: float

    @property
    def side(self) -> int:
        """1 where all of it is above 0, −1 where all is below, 0 where 0 is in it (or nothing is known)."""
        return int(self.low > 0) - int(self.high < 0)

    @property
    def half(self) -> float:
        """Half its width; not a number where that is not known."""
        half = (self.high - self.low) / 2
        return half if math.isfinite(half) else math.nan

    def __str__(self) -> str:
        """The mean with the ends in brackets.

        >>> str(Interval(-0.5, -1.25, 0.25)), str(Interval(1.0, -math.inf, math.inf))
        ('−0.50 [−1.25, +0.25]', '+1.00')
        """
        ends = "" if math.isnan(self.half) else f" [{self.low:+.2f}, {self.high:+.2f}]"
        return f"{self.mean:+.2f}{ends}".replace("-", "−")

    def show(self, unit: str = "") -> str:
        """As text, a sign before every number.

        >>> Interval(-0.5, -1.25, 0.25).show(" points")
        '−0.5 points (95 % interval −1.2 to +0.25)'
        """
        mean, low, high = (f"{value:+.2g}" for value in self)
        known = math.isfinite(self.low) and math.isfinite(self.high)
        text = f"{mean}{unit} (95 % interval {low} to {high})" if known else f"{mean}{unit} (one seed: no interval)"
        return text.replace("-", "−") if math.isfinite(self.mean) else "not known"


def paired(a: Sequence[float], b: Sequence[float], *, level: float = 0.95) -> Interval:
    """The mean of a − b, pair by pair, and its interval by Student's t: d̄ ± t·s/√n.

    s² = Σ(d − d̄)²/(n − 1), and t is the (1 + level)/2 quantile with n − 1 degrees of freedom. Pairs one of whose values
    is not a number are left out. Raises `PathsumError` for sequences of different lengths.

    >>> Interval(*(round(value, 2) for value in paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])))
    Interval(mean=2.0, low=-0.48, high=4.48)
    """
    if len(a) != len(b):
        raise PathsumError(f"paired: {len(a)} values against {len(b)}; give one of each for every seed")
    return mean_interval([x - y for x, y in zip(a, b, strict=True)], level=level)


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """The mean and its interval by Student's t; values that are no finite number are left out."""
    values = [float(value) for value in values if math.isfinite(value)]
    if not values:
        return Interval(math.nan, -math.inf, math.inf)
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = student(len(values) - 1, level=level) * math.sqrt(variance / len(values))
    return Interval(mean, mean - half, mean + half)


@lru_cache
def student(freedom: int, *, level: float = 0.95) -> float:
    """The t with P(|T| ≤ t) = level, for a whole number of degrees of freedom; to the last bits of a float.

    By bisection of θ = atan(t/√ν), in which the probability is a finite sum of powers of cos θ.
    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4. Raises `PathsumError` for no degree of freedom.

    >>> round(student(1), 3), round(student(4), 3), round(student(30), 3)
    (12.706, 2.776, 2.042)
    """
    if freedom < 1 or not 0 < level < 1:
        raise PathsumError(f"student: {freedom} degrees of freedom at level {level:g}; expected 1 or more, and 0 to 1")
    low, high = 0.0, math.pi / 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, freedom) < level else (low, middle)
    return math.tan((low + high) / 2) * math.sqrt(freedom)


def within(theta: float, freedom: int) -> float:
    """P(|T| ≤ √ν·tan θ)."""
    cos, sin = math.cos(theta), math.sin(theta)
    odd = freedom % 2
    term, terms = (cos, []) if odd else (1.0, [])
    for k in range(odd, freedom - 1, 2):  # powers of cos θ up to ν − 2, each factor (k + 1)/(k + 2)
        terms.append(term)
        term *= cos * cos * (k + 1) / (k + 2)
    total = sin * math.fsum(terms)
    return 2 / math.pi * (theta + total) if odd else total
