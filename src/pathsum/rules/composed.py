"""Functions that are a few others in a row: written in terms of series, so that both semantics follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..coefficients import Space, cauchy
from ..errors import MissingRuleError
from ..series import Series
from . import argument, rule
from .elementwise import _integral, exp, log, power, smooth, softplus, tanh


def _log1p(c: Tensor, space: Space) -> Tensor:
    c = c.clone()
    c[0] += 1
    return log(c, space)


def _expm1(c: Tensor, space: Space) -> Tensor:
    c = exp(c, space)
    c[0] -= 1
    return c


def _atan(c: Tensor, space: Space) -> Tensor:
    square = cauchy(c, c, space)
    square[0] += 1
    return _integral(c, c[0].atan(), power(square, -1.0, space), space)


def _tanhshrink(c: Tensor, space: Space) -> Tensor:
    y = -tanh(c, space)
    y[: len(c)] += c[: len(y)]
    return y


@rule("log1p", "expm1", "atan", "arctan", "tanhshrink", "logsigmoid")
def elementwise(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x = args[0] if args else kwargs["input"]
    taylor, slope, strength = {
        "log1p": (_log1p, 1.0, 1),
        "expm1": (_expm1, 1.0, 1),
        "atan": (_atan, 1.0, 2),
        "arctan": (_atan, 1.0, 2),
        "tanhshrink": (_tanhshrink, 0.0, 1),
        "log_sigmoid": (lambda c, space: -softplus(-c, space), 0.5, 1),
        "logsigmoid": (lambda c, space: -softplus(-c, space), 0.5, 1),
    }[func.__name__]
    return smooth(x, func, taylor, slope, strength)


@rule("softsign")
def softsign(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    x = args[0] if args else kwargs["input"]
    return x / (x.abs() + 1)


@rule("glu")
def glu(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """First half times the sigmoid of the second."""
    x = args[0] if args else kwargs["input"]
    a, b = x.chunk(2, argument(args, kwargs, 1, "dim", -1))
    return a * b.sigmoid()


@rule("lerp")
def lerp(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    a, b = args[:2]
    return a + (b - a) * argument(args, kwargs, 2, "weight")


@rule("baddbmm")
def baddbmm(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    bias, a, b = args[:3]
    return kwargs.get("beta", 1) * bias + kwargs.get("alpha", 1) * (a @ b)


@rule("var", "std")
def spread(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Σ(a − mean)²/(N − correction) over `dim`, or its square root."""
    x = args[0] if args else kwargs["input"]
    dim = argument(args, kwargs, 1, "dim")
    if isinstance(dim, bool):
        raise MissingRuleError(f"{func.__name__} of a series: name the dimensions, x.{func.__name__}(dim=…)")
    dims = tuple(range(x.ndim)) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    unbiased = argument(args, kwargs, 2, "unbiased", True)
    correction = kwargs.get("correction", 1 if unbiased else 0)
    count = 1
    for d in dims:
        count *= x.shape[d]
    keepdim = argument(args, kwargs, 3, "keepdim", False)
    centered = x - x.mean(dims, keepdim=True)
    var = (centered * centered).sum(dims, keepdim=keepdim) / (count - correction)
    return var.sqrt() if func.__name__ == "std" else var


@rule("norm", "vector_norm")
def norm(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """The Euclidean norm over `dim`."""
    x: Any = args[0] if args else kwargs.get("input", kwargs.get("x"))
    p = argument(args, kwargs, 1, "p", kwargs.get("ord", 2))
    if p not in (2, 2.0, "fro", None):
        raise MissingRuleError(f"norm of order {p} of a series: only the Euclidean norm is covered")
    dim = argument(args, kwargs, 2, "dim")
    dims = tuple(range(x.ndim)) if dim is None else dim
    return (x * x).sum(dims, keepdim=argument(args, kwargs, 3, "keepdim", False)).sqrt()


@rule("normalize")
def normalize(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """a/max(‖a‖, eps)."""
    x = args[0] if args else kwargs["input"]
    p, dim = argument(args, kwargs, 1, "p", 2.0), argument(args, kwargs, 2, "dim", 1)
    return x / norm(torch.norm, (x, p, dim, True), {}).clamp_min(argument(args, kwargs, 3, "eps", 1e-12))


@rule("logsumexp")
def logsumexp(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """log Σ exp(a); gated: linear with the softmax frozen, the rest a bias path of order 0."""
    x, dim = args[0], argument(args, kwargs, 1, "dim")
    keepdim = argument(args, kwargs, 2, "keepdim", False)
    if not x.space.gated:
        top = x.c[0].amax(dim, keepdim=True)
        total = (x - top).exp().sum(dim, keepdim=True).log() + top
        return total if keepdim else total.squeeze(dim)
    v = x.base()
    weights: Any = torch.softmax(v, dim)
    out = (x * weights).sum(dim, keepdim=keepdim)
    return out + (v.logsumexp(dim, keepdim=keepdim) - (v * weights).sum(dim, keepdim=keepdim))


@rule("max_pool1d")
def max_pool1d(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given = dict(zip(names, args, strict=False)) | kwargs

    def pair(value: Any, other: int) -> tuple[int, int]:
        return (other, value if isinstance(value, int) else value[0])

    size = given["kernel_size"]
    return F.max_pool2d(
        given["input"].unsqueeze(-2),
        pair(size, 1),
        pair(given.get("stride") or size, 1),
        pair(given.get("padding", 0), 0),
        pair(given.get("dilation", 1), 1),
        given.get("ceil_mode", False),
    ).squeeze(-2)
