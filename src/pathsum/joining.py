"""What the knobs put in place of a call on plain tensors: skip + λ·branch, and αa + (1 − α)φ(a)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

IN_PLACE = frozenset(
    name.format(op) for op in ("add", "sub", "subtract") for name in ("{}_", "__i{}__", "i{}")
)  # torch.compile calls x += y operator.iadd


def join(args: tuple, skip: int, branch: int, signs: tuple[int, int], lam: float | Tensor, *, in_place: bool) -> Tensor:
    """skip + λ·branch of an addition's arguments; an in-place one keeps the result in its first argument."""
    base = args[skip] if signs[0] == 1 else -args[skip]
    if isinstance(lam, Tensor):
        # the gradient in λ needs the branch as it was
        factor = args[branch].clone() if in_place and branch == 0 and lam.requires_grad else args[branch]
        out = base + (signs[1] * lam) * factor
    elif lam == 0:
        out = base.clone()
    else:
        out = torch.add(base, args[branch], alpha=signs[1] * lam)
    return args[0].copy_(out) if in_place else out


def bend(func: Callable[..., Any], alpha: float | Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
    """αa + (1 − α)φ(a); a vector α runs along the channels. An in-place φ keeps the result in its argument."""
    a = args[0] if args else kwargs["input"]
    rest = args[1:] if args else ()
    kwargs = {k: v for k, v in kwargs.items() if k != "input"}
    if isinstance(alpha, Tensor) and alpha.ndim == 1 and alpha.numel() > 1 and a.ndim in (4, 5):
        alpha = alpha.view(-1, *(1,) * (a.ndim - 2))
    changed = a.clone()  # where φ works in place, its gradient needs its own result
    value = func(changed, *rest, **kwargs)
    if value is not changed:
        return alpha * changed + (1 - alpha) * value
    return a.copy_(alpha * a.clone() + (1 - alpha) * value)
