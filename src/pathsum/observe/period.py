"""How often to observe, so that it takes no more than its share of the time."""

from __future__ import annotations

import math
from collections.abc import Sequence

BUDGET = 0.1  # the share of a run's time that observing may take
SLACK = (
    2.0  # observing runs in eager mode, sample by sample as costly as the forward passes counted here, or up to this
)


def passes(measures: Sequence[str], *, depth: int, classes: int, order: int) -> float:
    """Forward passes over the probe that an observation is worth.

    Exact complexity: one forward, and a backward pass to the input for each class. Lengths: in block i there are i + 1
    of them, and the output once more. Orders: order + 1. Gradient: three, as a step.

    >>> passes(["complexity", "lengths", "orders", "gradient", "lam"], depth=16, classes=10, order=4)
    28.5
    """
    cost = {
        "complexity": 1.0 + classes,
        "lengths": 1 + (depth + 1) / 2,
        "orders": 1.0 + order,
        "gradient": 3.0,
        "lam": 0.0,
    }
    return sum(cost[name] for name in measures)


def period(steps: int, *, samples: float, batch_size: int, budget: float = BUDGET) -> int:
    """Steps between observations of a run of `steps`, the same for every run of that size; a function of sizes alone.

    One observation, at `samples` forward passes of one sample, costs k = 2·samples/(3·batch_size) steps of three passes
    over a batch (2 for slack). Of the budget·steps/k observations that fit two are the first and the last.

    >>> period(1000, samples=64 * 28.5, batch_size=64)
    250
    """
    cost = SLACK * samples / (3 * batch_size)
    fit = math.floor(budget * steps / cost) if cost else steps
    if fit < 3:  # only the ends
        return steps
    return min(steps, 10 * math.ceil(steps / (fit - 1) / 10))


def round_number(k: float) -> int:
    """The next number of 1, 2, 5, 10, 20, 50, … that is no smaller.

    >>> round_number(0.3), round_number(3), round_number(50), round_number(51)
    (1, 5, 50, 100)
    """
    size = 10 ** math.floor(math.log10(max(k, 1)))
    return next(int(size * digit) for digit in (1, 2, 5, 10) if size * digit >= k)
