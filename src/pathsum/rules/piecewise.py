"""Functions linear in pieces: ReLU and its kin, clamps, the larger of two.

Taylor: a piece is chosen by the sign of the first nonzero coefficient of the distance to a kink, which is the one-sided
expansion t → 0⁺. Gated: by the value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..coefficients import add_coeffs, align, lex_sign, pad
from ..errors import ModeError
from ..series import Series
from . import argument, bound, overwrite, rule
from .elementwise import exp, gated
from .linear import coefficients


def piecewise(
    x: Series, points: tuple[Any, ...], slopes: tuple[Any, ...], offsets: tuple[Any, ...], strength: int = 1
) -> Series:
    """A piecewise-linear function: slope and offset of each piece between the points, left to right.

    At a kink the piece is chosen by the first nonzero coefficient of a − point.
    """
    v = x.base()
    gate, offset = torch.zeros_like(v) + slopes[0], torch.zeros_like(v) + offsets[0]
    for point, slope, off in zip(points, slopes[1:], offsets[1:], strict=True):
        above = beyond(x, point, v)
        gate = torch.where(above, slope, gate)
        offset = torch.where(above, off, offset)
    out = x.times(gate)
    if any(isinstance(o, Tensor) or o != 0 for o in offsets):
        out[0].add_(offset)
    return x.like(out, gate=strength)


def beyond(x: Series, point: Any, value: Tensor | None = None) -> Tensor:
    """Where the series exceeds `point` (just above t = 0 for Taylor; at its value for gated)."""
    v = x.base() if value is None else value
    above = v > point
    if x.space.gated or len(x.c) == 1 or (isinstance(point, int | float) and bool((v - point if point else v).all())):
        return above
    return above | ((v == point) & (lex_sign(x.c[1:]) > 0))


@rule("relu")
def relu(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x = args[0] if args else kwargs["input"]
    sign = x.base().sign() if x.space.gated else lex_sign(x.c)
    if x.joint is not None:
        block = x.joint if x.free else x.joint.clone()
        block[0].clamp_min_(0)
        block[1:].mul_(sign.clamp_min_(0))
        out = Series.joined(block, x.space, gate=1)
    else:
        out = x.like(x.times(sign.clamp_min(0)), gate=1)
    return overwrite(x, out) if argument(args, kwargs, 1, "inplace", False) is True else out


@rule("leaky_relu")
def leaky_relu(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x = args[0] if args else kwargs["input"]
    out = piecewise(x, (0,), (argument(args, kwargs, 1, "negative_slope", 0.01), 1.0), (0, 0))
    return overwrite(x, out) if argument(args, kwargs, 2, "inplace", False) is True else out


@rule("prelu")
def prelu(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x, weight = bound("input weight", func, args, kwargs)
    if weight.numel() > 1:
        weight = weight.view(-1, *(1,) * (x.c.ndim - 3))
    return piecewise(x, (0,), (weight, torch.ones_like(weight)), (0, 0))


@rule("relu6")
def relu6(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x = args[0] if args else kwargs["input"]
    out = piecewise(x, (0, 6), (0.0, 1.0, 0.0), (0.0, 0.0, 6.0))
    return overwrite(x, out) if argument(args, kwargs, 1, "inplace", False) is True else out


@rule("hardtanh", "clamp", "clip")
def clamp(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x = args[0] if args else kwargs["input"]
    low, high = (-1.0, 1.0) if func.__name__ == "hardtanh" else (None, None)
    low = kwargs.get("min", kwargs.get("min_val", args[1] if len(args) > 1 else low))
    high = kwargs.get("max", kwargs.get("max_val", args[2] if len(args) > 2 else high))
    out = x
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        out = out if low is None else extremum(torch.maximum, (out, torch.as_tensor(low)), {})
        out = out if high is None else extremum(torch.minimum, (out, torch.as_tensor(high)), {})
        return overwrite(x, out) if kwargs.get("inplace") else out
    if low is not None:
        out = piecewise(out, (low,), (0.0, 1.0), (low, 0.0))
    if high is not None:
        out = piecewise(out, (high,), (1.0, 0.0), (0.0, high))
    return overwrite(x, out) if kwargs.get("inplace") else out


@rule("clamp_min", "clamp_max")
def clamp_one(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    side = func.__name__.removeprefix("clamp_").rstrip("_")
    x, limit = bound(f"input {side}", func, args, kwargs)
    return clamp(torch.clamp, (x,), {side: limit})


@rule("abs", "absolute", "__abs__")
def absolute(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x = args[0] if args else kwargs["input"]
    if x.c.is_complex():
        return (x.real * x.real + x.imag * x.imag).sqrt()
    return piecewise(x, (0,), (-1.0, 1.0), (0, 0))


@rule("threshold", "_threshold")
def threshold(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """a above the threshold, else a constant."""
    x, point, value, inplace = bound("input threshold value inplace", func, args, kwargs)
    out = piecewise(x, (point,), (0.0, 1.0), (value, 0.0))
    return overwrite(x, out) if inplace else out


@rule("hardshrink")
def hardshrink(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """a outside [−λ, λ], else 0."""
    x, width = bound("input lambd", func, args, kwargs, lambd=0.5)
    outside = beyond(x, width) | beyond(x.like(-x.c), width)
    return x.like(x.times(outside.to(x.c.dtype)), gate=1)


@rule("softshrink")
def softshrink(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """a moved towards 0 by λ, and 0 within it."""
    x, width = bound("input lambd", func, args, kwargs, lambd=0.5)
    return piecewise(x, (-width, width), (1.0, 0.0, 1.0), (width, 0.0, -width))


@rule("rrelu")
def rrelu(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """LeakyReLU with the mean slope; its random slopes in train mode are refused."""
    x, lower, upper, training, inplace = bound(
        "input lower upper training inplace", func, args, kwargs, lower=1 / 8, upper=1 / 3
    )
    if training:
        raise ModeError("rrelu in train mode draws random slopes: call model.eval() first")
    out = piecewise(x, (0,), ((lower + upper) / 2, 1.0), (0, 0))
    return overwrite(x, out) if inplace else out


@rule("hardsigmoid")
def hardsigmoid(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x = args[0] if args else kwargs["input"]
    out = piecewise(x, (-3, 3), (0.0, 1 / 6, 0.0), (0.0, 0.5, 1.0), strength=2)
    return overwrite(x, out) if argument(args, kwargs, 1, "inplace", False) is True else out


@rule("hardswish")
def hardswish(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x = args[0] if args else kwargs["input"]
    out = gated(x, F.hardswish, 0.5, 1) if x.space.gated else x * F.hardsigmoid(x)
    return overwrite(x, out) if argument(args, kwargs, 1, "inplace", False) is True else out


@rule("elu", "celu", "selu")
def elu(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """scale·(a above 0, α(exp(a/β) − 1) below), β = α for celu."""
    x = args[0] if args else kwargs["input"]
    name = func.__name__.rstrip("_")
    alpha, scale, rate = argument(args, kwargs, 1, "alpha", 1.0), 1.0, 1.0
    if name == "selu":
        alpha, scale = 1.6732632423543772, 1.0507009873554805
    elif name == "celu":
        rate = 1 / alpha
    if x.space.gated:
        out = gated(x, lambda v: func(v, **({} if name == "selu" else {"alpha": alpha})), scale, 1)
    else:
        above = beyond(x, 0)
        low = exp(torch.where(above, torch.zeros_like(x.c), x.c) * rate, x.space) * (alpha * scale)
        low[0].sub_(alpha * scale)
        out = x.like(torch.where(above, pad(x.c, len(low)) * scale, low), gate=1)
    inplace = argument(args, kwargs, 1 if name == "selu" else 2, "inplace", False)
    return overwrite(x, out) if inplace is True else out


@rule("maximum", "minimum", "fmax", "fmin")
def extremum(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    a, b = bound("input other", func, args, kwargs)
    like = a if isinstance(a, Series) else b
    sign = 1 if func.__name__ in ("maximum", "fmax") else -1
    ca, cb = coefficients(a, like), coefficients(b, like)
    first = beyond(like.like(sign * add_coeffs(ca, cb, -1)), 0)
    m, ndim = max(len(ca), len(cb)), max(ca.ndim, cb.ndim) - 1
    return like.like(torch.where(first, align(pad(ca, m), ndim), align(pad(cb, m), ndim)))
