"""The proximal map of the prior t·|u|^p, u = 1 − α: exact, so that no step overshoots its unbounded slope.

From the stationary points of ½(u − v)² + t·u^p on u ≥ 0 (half-thresholding for p = ½: Xu, Chang, Xu & Zhang 2012,
"L1/2 regularization: a thresholding representation theory and a fast solver").
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NEWTON = 40  # iterations for exponents without a closed form; convergence is quadratic, and from above


def threshold(t: float, power: float) -> float:
    """The |v| up to which the proximal map gives 0.

    With u* = (2t(1 − p))^(1/(2−p)), where the two minima are level: v* = u* + t·p·u*^(p−1); for p = ½ (3/2)·t^(2/3),
    for p = 1 the soft threshold t.

    >>> threshold(0.001, 0.5)
    0.015
    """
    if t <= 0:
        return 0.0
    if power == 0.5:
        return round(1.5 * t ** (2 / 3), 15)
    if power == 1:
        return t
    jump = (2 * t * (1 - power)) ** (1 / (2 - power))
    return jump + t * power * jump ** (power - 1)


def proximal(v: Tensor, t: Tensor, power: float) -> Tensor:
    """argmin over u ≥ 0 of ½(u − v)² + t·u^p, entry by entry; 0 < p ≤ 1, t ≥ 0 of the same shape.

    p = ½: beyond the threshold u = (2v/3)·(1 + cos(2π/3 − (2/3)·arccos((t/4)·(v/3)^(−3/2)))), the larger root of
    u − v + t/(2√u) = 0. p = 1: v − t. Else by Newton's method from v, where the left side is convex and rises.
    """
    if power == 1:
        return (v - t).clamp_min(0)
    if power == 0.5:
        bar = 1.5 * t.pow(2 / 3)
        safe = torch.maximum(v, bar).clamp_min(torch.finfo(v.dtype).tiny)
        angle = torch.arccos((t / 4 * (safe / 3).pow(-1.5)).clamp_max(1))
        root = 2 / 3 * safe * (1 + torch.cos(2 / 3 * (math.pi - angle)))
    else:
        level = (2 * t * (1 - power)).pow(1 / (2 - power))
        bar = torch.where(t > 0, level + t * power * level.pow(power - 1), torch.zeros_like(t))
        safe = torch.maximum(v, bar).clamp_min(torch.finfo(v.dtype).tiny)
        root = safe
        for _ in range(NEWTON):
            slope = t * power * root.pow(power - 1)
            root = root - (root - safe + slope) / (1 + slope * (power - 1) / root)
            root = torch.maximum(root, level)
    root = torch.where(t > 0, root, v)
    return torch.where(v > bar, root, torch.zeros_like(v)).clamp_min(0)
