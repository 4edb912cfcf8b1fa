"""Correlation of ranks."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def ranks(values: ArrayLike) -> np.ndarray:
    """Ranks from 1, ties averaged, along the only axis of (N,).

    >>> ranks([3.0, 1.0, 3.0, 7.0]).tolist()
    [2.5, 1.0, 2.5, 4.0]
    """
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((2 * last - counts + 1) / 2)[inverse]


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation, that of ranks with ties averaged; NaN where one of the two is constant.

    >>> spearman([1, 2, 3, 4], [10, 20, 40, 30]), spearman([1, 2, 3], [5, 4, 1])
    (0.8, -1.0)
    """
    x, y = (ranks(values) for values in (a, b))
    x, y = x - (len(x) + 1) / 2, y - (len(y) + 1) / 2
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else float("nan")
