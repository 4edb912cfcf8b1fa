"""Student's t without tables: against integrals of its density, closed forms and printed tables; paired differences."""

import math

import numpy as np
import pytest

from pathsum.errors import PathsumError
from pathsum.studies.intervals import Interval, mean_interval, paired, student


def inside(t: float, freedom: int) -> float:
    """P(|T| ≤ t) by Gauss–Legendre integration of the density."""
    x, w = np.polynomial.legendre.leggauss(400)
    norm = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    return float(t * np.sum(w * norm * (1 + (t * (x + 1) / 2) ** 2 / freedom) ** (-(freedom + 1) / 2)))


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 31, 120])
def test_quantiles_hold_the_level(freedom, level):
    assert inside(student(freedom, level=level), freedom) == pytest.approx(level, abs=1e-12)


def test_closed_forms_and_the_printed_table():
    assert student(1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-13)
    assert student(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-13)
    printed = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 30: 2.042, 1000: 1.962}
    assert {freedom: round(student(freedom), 3) for freedom in printed} == printed


def test_paired_differences():
    a, b = [3.0, 5.0, 4.5, 7.0], [2.5, 4.0, 4.5, 5.0]
    d = np.subtract(a, b)
    half = student(3) * d.std(ddof=1) / 2
    assert paired(a, b) == pytest.approx((d.mean(), d.mean() - half, d.mean() + half), rel=1e-13)
    assert paired(b, a) == pytest.approx((-d.mean(), -d.mean() - half, -d.mean() + half), rel=1e-13)
    assert paired([*a, math.nan], [*b, 1.0]) == paired(a, b)
    assert paired([1e9 + 1, 1e9 + 1], [1e9, 1e9]) == (1.0, 1.0, 1.0)


def test_sides_and_text():
    assert [Interval(1, low, high).side for low, high in ((0.5, 2), (-1, 2), (-3, -1), (0, 2))] == [1, 0, -1, 0]
    assert paired([2.0], [1.0]) == (1.0, -math.inf, math.inf)
    assert paired([2.0], [1.0]).side == 0
    assert "one seed" in paired([2.0], [1.0]).show()
    assert math.isnan(mean_interval([]).mean)
    assert mean_interval([]).show() == "not known"
    assert Interval(-1.0, -2.0, -0.1).show(" points") == "−1 points (95 % interval −2 to −0.1)"


def test_what_is_no_interval():
    with pytest.raises(PathsumError, match="paired: 2 values against 1"):
        paired([1.0, 2.0], [1.0])
    with pytest.raises(PathsumError, match="student: 0 degrees"):
        student(0)
