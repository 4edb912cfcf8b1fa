"""Coefficients in λ by running the network at many λ: on a complex circle, or at small positive numbers."""

import cmath
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tests.reference.pieces import Pieces, freeze, kinks, run

# λ → 0+: small enough that the smallest generic pre-activation (about 1e-6) keeps its sign, large enough
# that an exact zero plus λ·F is far above the rounding of F.
EPSILON = 1e-9


def taylor_terms(pieces: Pieces, x: Tensor, order: int, *, radius: float = 0.25, nodes: int = 64) -> Tensor:
    """Coefficients of λ^0..λ^order for λ → 0+, (order+1, batch, …), by Cauchy's integral on |λ| = radius.

    `c_k = (1/N) Σ_j f(r e^{2πij/N}) e^{−2πijk/N} / r^k`. Kinks keep the side they have at λ = EPSILON, so the
    function on the circle is the analytic one that the network equals for small λ > 0. Errors: rounding
    1e-16·max|f|/r^k, and aliasing c_{k+N} r^N.
    """
    low, high = kinks(pieces, x, EPSILON / 30), kinks(pieces, x, EPSILON)
    if any(not torch.equal(a, b) for a, b in zip(low, high, strict=True)):
        raise ValueError("a gate flips below λ = 1e-9: choose another seed")
    return circle(freeze(pieces, x, EPSILON, "kinks"), x, order, radius, nodes)


def gated_terms(pieces: Pieces, x: Tensor) -> Tensor:
    """Path lengths 0..n without enumeration: with frozen gates the network is a polynomial in λ."""
    depth = len(pieces.blocks)
    return circle(freeze(pieces, x, 1.0, "gates"), x, depth, 1.0, depth + 1)


def circle(frozen: Pieces, x: Tensor, order: int, radius: float, nodes: int) -> Tensor:
    """Coefficients from values at `nodes` points on a circle; f(λ*) = f(λ)*, so half the circle will do."""
    points = [cmath.rect(radius, 2 * cmath.pi * j / nodes) for j in range(nodes // 2 + 1)]
    values = torch.stack([run(frozen, x, p) for p in points])
    powers = torch.arange(order + 1, dtype=torch.float64)
    scales = (radius**powers).view(-1, *(1,) * (values.ndim - 1))
    return torch.fft.hfft(values, n=nodes, dim=0)[: order + 1] / nodes / scales


def one_sided_terms(pieces: Pieces, x: Tensor, order: int, *, step: float, extra: int = 0) -> Tensor:
    """Coefficients of the polynomial through λ = 0, h, …, (order+extra)·h: nothing frozen or complex."""
    count = order + extra + 1
    values = torch.stack([run(pieces, x, step * j) for j in range(count)])
    vandermonde = torch.from_numpy(np.vander(np.arange(count, dtype=float), increasing=True))
    fit = torch.linalg.solve(vandermonde, values.reshape(count, -1)).view_as(values)[: order + 1]
    return fit / (step ** torch.arange(order + 1, dtype=torch.float64)).view(-1, *(1,) * (values.ndim - 1))


def line_terms(f: Callable[[Tensor], Tensor], order: int, *, reach: float = 0.05) -> Tensor:
    """Taylor coefficients of a smooth f(t) of one float64 number, through 2·order + 5 Chebyshev points in ±reach."""
    count = 2 * order + 5
    points = torch.cos(torch.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count)
    values = torch.stack([f(reach * t) for t in points])
    vandermonde = points[:, None] ** torch.arange(count, dtype=torch.float64)
    fit = torch.linalg.solve(vandermonde, values.reshape(count, -1)).view_as(values)[: order + 1]
    return fit / (reach ** torch.arange(order + 1, dtype=torch.float64)).view(-1, *(1,) * (values.ndim - 1))
