"""Functions that are a few others in a row: written in terms of series, so that both semantics follow."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..coefficients import align
from ..series import Series
from . import bound, rule
from .elementwise import power, ratio_gated
from .selection import flat
from .steps import sign_of


@rule("softsign")
def softsign(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    x = bound("input", func, args, kwargs)[0]
    return x / (x.abs() + 1)


@rule("softmin")
def softmin(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    x, dim, _, dtype = bound("input dim _stacklevel dtype", func, args, kwargs)
    return F.softmax(-x, dim=dim, dtype=dtype)


@rule("glu")
def glu(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """First half times the sigmoid of the second."""
    x, dim = bound("input dim", func, args, kwargs, dim=-1)
    a, b = x.chunk(2, dim)
    return a * b.sigmoid()


@rule("lerp")
def lerp(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    a, b, weight = bound("input end weight", func, args, kwargs)
    return a + (b - a) * weight


@rule("logsumexp")
def logsumexp(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """log Σ exp(a); gated: linear with the softmax frozen, the rest a bias path of order 0."""
    x, dim, keepdim = bound("input dim keepdim", func, args, kwargs, keepdim=False)
    if not x.space.gated:
        top = x.c[0].detach().amax(dim, keepdim=True)
        total = (x - top).exp().sum(dim, keepdim=True).log() + top
        return total if keepdim else total.squeeze(dim)
    v = x.base()
    whole = v.logsumexp(dim, keepdim=True)
    weights, masked = (v - whole).exp(), v == -torch.inf
    out = (x.masked_fill(masked, 0.0) * weights).sum(dim, keepdim=True)
    out = out + (whole - (v.masked_fill(masked, 0.0) * weights).sum(dim, keepdim=True))
    return out if keepdim else out.squeeze(dim)


@rule("logaddexp", "logaddexp2")
def logaddexp(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """max(a, b) + log(1 + exp(−|a − b|))."""
    a, b = bound("input other", func, args, kwargs)
    unit = math.log(2) if func.__name__ == "logaddexp2" else 1.0
    return torch.maximum(a, b) + F.softplus((a - b).abs() * -unit) / unit


@rule("logcumsumexp")
def logcumsumexp(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    x, dim = bound("input dim", func, args, kwargs)
    return torch.stack(list(accumulate(x.unbind(dim), torch.logaddexp)), dim)


@rule("prod")
def prod(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Factor after factor; gated: of values the first stays, the others are frozen."""
    x, dim, keepdim, dtype = bound("input dim keepdim dtype", func, args, kwargs)
    x = x if dtype is None else x.to(dtype)
    if dim is None:
        return reduce(torch.mul, flat(x).unbind(0))
    out = reduce(torch.mul, x.unbind(dim))
    return out.unsqueeze(dim) if keepdim else out


@rule("cumprod")
def cumprod(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    x, dim, dtype = bound("input dim dtype", func, args, kwargs)
    x = x if dtype is None else x.to(dtype)
    return torch.stack(list(accumulate(x.unbind(dim), torch.mul)), dim)


def general_power(x: Any, p: Any) -> Any:
    """x^p with a series, or a tensor, for an exponent; gated: the exponent is frozen before the base."""
    if not isinstance(p, Series):
        return power_of_each(x, p)
    if not isinstance(x, Series):
        return (p * torch.log(torch.as_tensor(x, dtype=p.c.dtype, device=p.c.device))).exp()
    return power_of_each(x, p.base()) if p.space.gated else (p * x.log()).exp()


def power_of_each(x: Series, p: Tensor) -> Series:
    """x^p for a plain tensor p: each of the numbers in it on its own."""
    if x.space.gated:
        return ratio_gated(x.like(align(x.c, p.ndim)), lambda v: v.pow(p), 1)
    numbers = p.unique().tolist()
    if len(numbers) == 1:
        return x ** numbers[0] if p.ndim <= x.ndim else x.expand(torch.broadcast_shapes(x.shape, p.shape)) ** numbers[0]
    out: Any = torch.zeros((), dtype=x.c.dtype, device=x.c.device)
    for number in numbers:
        out = torch.where(p == number, x.like(power(x.c, number, x.space)), out)
    return out


@rule("float_power")
def float_power(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """A power in double precision."""
    x, p = (
        v.to(torch.cdouble if v.is_complex() else torch.double) if isinstance(v, Tensor) else v
        for v in bound("input exponent", func, args, kwargs)
    )
    return torch.pow(x, p)


@rule("__rpow__")
def rpow(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    return general_power(args[1], args[0])


@rule("ldexp")
def ldexp(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """a·2^b."""
    a, b = bound("input other", func, args, kwargs)
    return a * torch.exp2(b if isinstance(b, Series) else b.to(torch.get_default_dtype()))


@rule("hypot")
def hypot(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    a, b = bound("input other", func, args, kwargs)
    return (a * a + b * b).sqrt()


@rule("atan2", "arctan2")
def atan2(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """The angle of (x, y); gated: of y where that is a series, x frozen. Taylor: ±atan of the smaller ratio, turned."""
    y, x = bound("input other", func, args, kwargs)
    like = y if isinstance(y, Series) else x
    vy, vx = (v.base() if isinstance(v, Series) else v for v in (y, x))
    angle = torch.atan2(vy, vx)
    if like.space.gated:
        wide = like.like(align(like.c, angle.ndim).expand(like.m, *angle.shape))
        return ratio_gated(wide, lambda v: torch.atan2(v, vx) if like is y else torch.atan2(vy, v), 2)
    upright = vy.abs() > vx.abs()
    turned: Any = (torch.where(upright, -x, y) / torch.where(upright, y, x)).atan()
    return like.like(torch.cat([angle.unsqueeze(0), turned.c[1:]]))


@rule("angle")
def angle(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Of complex numbers."""
    x = bound("input", func, args, kwargs)[0]
    return torch.atan2(x.imag, x.real)


@rule("copysign")
def copysign(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    a, b = bound("input other", func, args, kwargs)
    return a.abs() * (torch.sign(b) if isinstance(b, Tensor) else math.copysign(1.0, b))


@rule("polar")
def polar(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """r·(cos a + i·sin a)."""
    r, angle = bound("abs angle", func, args, kwargs)
    return torch.complex(r * torch.cos(angle), r * torch.sin(angle))


@rule("xlogy")
def xlogy(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """a·log b, and 0 where a = 0."""
    a, b = bound("input other", func, args, kwargs)
    nothing = sign_of(a) == 0 if isinstance(a, Tensor) else torch.tensor(a == 0)
    return torch.where(nothing, torch.zeros((), dtype=b.dtype), a * torch.where(nothing, torch.ones_like(b), b).log())
