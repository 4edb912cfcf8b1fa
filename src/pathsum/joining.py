"""What the knobs put in place of a call on plain tensors: skip + λ·branch, and αa + (1 − α)φ(a)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import LambdaError

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
    """αa + (1 − α)φ(a). An in-place φ keeps the result in its argument.

    α is a number, a vector along the channels (axis 1 of maps, the last of others), or broadcasts against one sample.
    For φ = ReLU this is one kernel, as is its gradient in a and α. Raises `LambdaError` where α does not fit.
    """
    a = args[0] if args else kwargs["input"]
    rest = args[1:] if args else ()
    kwargs = {k: v for k, v in kwargs.items() if k != "input"}
    weight = fitted(alpha, a)
    name = func.__name__
    writes = name.endswith("_") or kwargs.get("inplace") is True or any(v is True for v in rest)  # perhaps
    if name.strip("_") == "relu":
        if not writes:
            return leaky(a, weight)
        return a if not isinstance(weight, Tensor) and weight == 1 else a.copy_(leaky(a.clone(), weight))
    if not writes:
        return blend(func(a, *rest, **kwargs), a, weight)
    changed = a.clone()  # where φ works in place, its gradient needs its own result
    value = func(changed, *rest, **kwargs)
    if value is not changed:
        return blend(value, changed, weight)
    return a.copy_(blend(value, a.clone(), weight))


def fitted(alpha: float | Tensor, a: Tensor) -> float | Tensor:
    """α in the form that broadcasts against a."""
    if not isinstance(alpha, Tensor) or alpha.ndim == 0:
        return alpha
    weight = alpha
    if alpha.ndim == 1 and alpha.numel() > 1 and a.ndim in (4, 5):
        weight = alpha.view(-1, *(1,) * (a.ndim - 2))
    if weight.ndim > a.ndim or any(n not in (1, m) for n, m in zip(weight.shape[::-1], a.shape[::-1], strict=False)):
        raise LambdaError(
            f"α of shape {tuple(alpha.shape)} does not fit a unit of shape {tuple(a.shape)}: give a number, one value "
            "a channel (axis 1 of maps, the last of others), or a tensor that broadcasts against one sample"
        )
    return weight


def leaky(a: Tensor, alpha: float | Tensor) -> Tensor:
    """αa + (1 − α)relu(a) = a where a > 0, else αa; α broadcasts against a."""
    if not isinstance(alpha, Tensor):
        return F.leaky_relu(a, alpha)
    alpha = alpha.to(a.dtype)
    if alpha.numel() == 1:
        return F.prelu(a, alpha.reshape(1))
    flat = alpha.reshape(-1)
    if a.ndim > 1 and alpha.ndim >= a.ndim - 1 and alpha.shape[-(a.ndim - 1)] == alpha.numel():  # along axis 1
        return F.prelu(a, flat)
    if alpha.shape[-1] == alpha.numel():  # along the last
        return F.prelu(a.reshape(-1, alpha.numel()), flat).view(a.shape)
    return torch.where(a > 0, a, alpha * a)


def blend(value: Tensor, a: Tensor, alpha: float | Tensor) -> Tensor:
    """value + α(a − value), exact at α = 0 and 1."""
    return torch.lerp(value, a, alpha.to(a.dtype) if isinstance(alpha, Tensor) else alpha)
