"""Random signs for Hutchinson's estimate: each probe Rademacher, the probes of one sample nearly orthogonal."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

LARGEST = 1024  # outputs up to which probes are drawn without replacement; beyond it gains under 1 % at 10 probes


def draw(samples: int, outputs: int, probes: int, *, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Probes v (m, B, C) of ±1 with E[vvᵀ] = 1, independent between samples.

    Each sample takes m distinct rows of a Hadamard matrix of order N ≥ C, cut to C columns, times random signs. A row
    alone is Rademacher; all N of them sum to the trace exactly, so m rows have (N − m)/(N − 1) of the variance of m
    independent probes. After N rows the next are drawn afresh.
    """
    device = like.device if generator is None else generator.device
    order = order_for(outputs)
    drawn = []
    if order is None:
        bits = torch.randint(2, (probes, samples, outputs), generator=generator, device=device)
        return (2 * bits - 1).to(like)
    matrix = hadamard(order)[:, :outputs].to(device)
    while probes > 0:
        rows = torch.rand(samples, order, generator=generator, device=device).argsort(1)[:, :probes]
        signs = 2 * torch.randint(2, (samples, 1, outputs), generator=generator, device=device) - 1
        drawn.append((matrix[rows] * signs).transpose(0, 1))
        probes -= order
    return torch.cat(drawn).to(like)


def variance(values: Tensor, outputs: int) -> Tensor:
    """Variance of the mean of m probes' values (m, B), a sample, estimated from them without bias; nan for m = 1.

    From one Hadamard set it is s²/m · (1 − m/N), as for draws without replacement.
    """
    m, order = len(values), order_for(outputs)
    if m == 1 and order != 1:
        return torch.full_like(values[0], torch.nan)
    if order is None:
        return values.var(0) / m
    sets = values.split(order)
    total = torch.zeros_like(values[0])
    for part in sets:  # each set has a mean of its own; one that is complete has no error
        k = len(part)
        if k < order:
            spread = part.var(0) if k > 1 else values[:-1].var(0)  # a last probe alone takes that of the others
            total += k * (1 - k / order) * spread
    return total / m**2


@functools.cache
def order_for(outputs: int) -> int | None:
    """The least order ≥ C of a Hadamard matrix known here, None beyond `LARGEST`."""
    if outputs > LARGEST:
        return None
    return next(n for n in range(outputs, 2 * outputs + 1) if n & (n - 1) == 0 or is_paley(n))


def is_paley(order: int) -> bool:
    """Whether order − 1 is a prime that leaves 3 when divided by 4."""
    q = order - 1
    return q % 4 == 3 and all(q % d for d in range(2, int(q**0.5) + 1))


@functools.cache
def hadamard(order: int) -> Tensor:
    """A matrix of ±1 with HᵀH = N·1: Sylvester's for powers of two, else Paley's first construction.

    >>> h = hadamard(12)
    >>> bool((h.T @ h == 12 * torch.eye(12, dtype=torch.int64)).all())
    True
    """
    if order & (order - 1) == 0:
        h = torch.ones(1, 1, dtype=torch.int64)
        while len(h) < order:
            h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
        return h
    q = order - 1
    squares = {i * i % q for i in range(1, q)}
    residue = torch.tensor([0] + [1 if i in squares else -1 for i in range(1, q)])
    i = torch.arange(q)
    h = torch.ones(order, order, dtype=torch.int64)
    h[1:, 1:] = residue[(i[None, :] - i[:, None]) % q] - torch.eye(q, dtype=torch.int64)
    h[1:, 0] = -1
    h[0, 0] = 1
    return h
