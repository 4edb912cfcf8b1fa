"""Jets: the Taylor coefficients of any function along a line, by the same series arithmetic as everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .care import full_precision
from .coefficients import Space, pad
from .errors import PathsumError
from .results import check_count
from .running import Following
from .series import Series


def jet(f: Callable[[Any], Any], x: Tensor, direction: Tensor, *, order: int) -> Tensor:
    """Taylor coefficients of t ↦ f(x + t·direction) at t = 0: `out[k] = f⁽ᵏ⁾(x)[direction, …]/k!`.

    f: a module or function of one tensor that returns a tensor, such as one block of a network; x and direction have
    one shape, with a batch if f takes one. Returns (order+1, *shape of f(x)). Where f has a kink at x it is the
    one-sided expansion t → 0⁺. No nested differentiation: one run of f on a power series, cost about order+1 runs.

    >>> import torch, pathsum as ps
    >>> ps.jet(torch.exp, torch.zeros(()), torch.ones(()), order=3).tolist()
    [1.0, 1.0, 0.5, 0.1666666716337204]

    Raises `PathsumError` where shapes differ or f returns no tensor, `MissingRuleError` for a function without a rule.
    """
    check_count("order", order)
    if x.shape != direction.shape or x.dtype != direction.dtype:
        raise PathsumError(
            f"jet: x has shape {tuple(x.shape)} ({x.dtype}), the direction {tuple(direction.shape)} "
            f"({direction.dtype}): give a direction like x"
        )
    if not x.is_floating_point():
        raise PathsumError(f"jet: x is {x.dtype}: give a point of real numbers, such as the embedding of the tokens")
    line = Series(torch.stack([x, direction]) if order else x.unsqueeze(0), Space(order))
    with Following() as mode, full_precision():
        out = mode.reveal_output(f(line))
    if not isinstance(out, Tensor):
        raise PathsumError(f"jet: f returned {type(out).__name__}, expected a tensor: pick one, lambda x: f(x)[0]")
    return pad(out.c if isinstance(out, Series) else out.unsqueeze(0), order + 1)
