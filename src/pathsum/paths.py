"""Counting paths: how many pass through k of n branches, and how much energy they should carry."""

from __future__ import annotations

import math

import numpy as np

from pathsum.errors import LambdaError


def path_counts(n: int) -> list[int]:
    """Return the number of paths through exactly k of n residual branches, `C(n, k)` for k = 0..n, exactly.

    They sum to 2^n: the unravelled view of Veit et al. 2016.

    >>> path_counts(4)
    [1, 4, 6, 4, 1]
    """
    _check_branches(n)
    counts = [1]
    for k in range(n):
        counts.append(counts[k] * (n - k) // (k + 1))
    return counts


def path_energy(n: int, lam: float, gain: float, *, log: bool = False) -> np.ndarray:
    """Return the energy expected at each order k = 0..n, relative to the base: `C(n,k) (gain·λ²)^k`, float64.

    For independent zero-mean branches paths are uncorrelated, and this is E‖λ^k M_k‖² / ‖z‖², with the branch
    gain `gain = E‖F(z)‖² / ‖z‖²` (about ½ for LeCun's init, 2 for He's, 1/18 for PyTorch's). The sum is
    (1 + gain·λ²)^n, the shares are Binomial(n, gain·λ² / (1 + gain·λ²)): at λ = 1/√n nearly Poisson(gain),
    whatever the depth. What float64 cannot hold reads inf or 0 (λ = 1 and gain 2 sum to 3^n, too large from
    n = 647); `log=True` returns natural logarithms, which always fit.

    >>> path_energy(2, lam=1.0, gain=0.5).tolist()
    [1.0, 1.0, 0.25]

    Raises LambdaError for λ not finite, or a gain that is negative or not finite.
    """
    _check_branches(n)
    if not math.isfinite(lam):
        raise LambdaError(f"λ must be finite, got {lam}")
    if not (math.isfinite(gain) and gain >= 0):
        raise LambdaError(f"the branch gain E‖F(z)‖²/‖z‖² must be finite and ≥ 0, got {gain}")
    # Sums of up to n logarithms, in long double where the machine has it: 1e-12 relative at n = 1e5 needs it.
    k = np.arange(1, n + 1, dtype=np.longdouble)
    factor = np.longdouble(gain) * np.longdouble(lam) ** 2
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        steps = np.log((n + 1 - k) / k) + np.log(factor)  # from order k−1 to order k; log 0 = −inf is right
        logs = np.concatenate(([np.longdouble(0)], np.cumsum(steps)))
        return (logs if log else np.exp(logs)).astype(np.float64)


def _check_branches(n: int) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise LambdaError(f"the number of branches must be an integer ≥ 0, got {n!r}")
