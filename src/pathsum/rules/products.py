"""Products and quotients of series: Cauchy products (Taylor); one factor frozen at its value (gated)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..coefficients import add_coeffs, align, cauchy, fits, multiply_into, shift
from ..errors import MissingRuleError
from ..series import Series
from . import pair, rule

Product = Callable[[Tensor, Tensor], Tensor]


def freeze_one(a: Series, b: Series) -> tuple[Tensor, Tensor]:
    """Gated: the stronger gate of the two is frozen at its value (of equals, the right one); the other stays."""
    return (a.base(), b) if a.gate > b.gate else (a, b.base())


def bilinear(a: Any, b: Any, product: Product) -> Series:
    """A product linear in each factor, whose tensors broadcast on leading axes."""
    if isinstance(a, Series) and isinstance(b, Series):
        if not a.space.gated:
            ndim = max(a.c.ndim, b.c.ndim) - 1
            return a.like(cauchy(align(a.c, ndim), align(b.c, ndim), a.space, product))
        a, b = freeze_one(a, b)
    if isinstance(a, Series):
        return a.like(product(align(a.c, b.ndim), b))
    return b.like(product(a, align(b.c, a.ndim)))


@rule("mul", "multiply")
def mul(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    a, b = pair(args, kwargs)
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        x, number = (a, b) if isinstance(a, Series) else (b, a)
        return x.like(x.times(number))
    if isinstance(a, Series) and isinstance(b, Series) and 0 in (a.c.ndim - 1, b.c.ndim - 1):
        by, x = (a, b) if a.c.ndim == 1 else (b, a)
        if not by.space.gated or is_variable(by):
            return scalar_product(by, x)
    if isinstance(a, Series) and isinstance(b, Series) and a is not b and not a.space.gated:
        for x, other in ((a, b), (b, a)):
            own = x.own_memory(other.c) if fits(x.c, other.c, x.space) else None
            if own is not None:
                return a.like(multiply_into(own, other.c))
    return bilinear(a, b, torch.mul)


def is_variable(t: Series) -> bool:
    """Whether a scalar series is a multiple of the formal variable, and not a value of the network."""
    return t.m == 2 and not bool(t.c[0])


def scalar_product(t: Series, x: Series) -> Series:
    """A scalar power series times a series: exact in both semantics, since t is the formal variable itself."""
    out, power = x.c * t.c[0], x.c
    for tk in t.c[1:]:
        power = shift(power, x.space)
        out = add_coeffs(out, power * tk)
    return x.like(out)


@rule("div", "divide", "true_divide")
def div(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    from .elementwise import power

    if kwargs.get("rounding_mode"):
        raise MissingRuleError("division with rounding_mode on a series: it is piecewise constant; divide, then round")
    a, b = pair(args, kwargs)
    if not isinstance(b, Series):
        return a.like(a.c / b) if not isinstance(b, Tensor) else a.like(align(a.c, b.ndim) / b)
    if b.space.gated:
        value = b.base()
        return a.like(align(a.c, value.ndim) / value) if isinstance(a, Series) else b.like((a / value).unsqueeze(0))
    inverse = b.like(power(b.c, -1.0, b.space))
    return mul(torch.mul, (inverse, a), {})


@rule("reciprocal")
def reciprocal(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x = args[0] if args else kwargs["input"]
    return div(torch.div, (torch.ones((), dtype=x.c.dtype), x), {})


@rule("__rdiv__", "__rtruediv__")
def rdiv(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    return div(torch.div, (torch.as_tensor(args[1], dtype=args[0].c.dtype), args[0]), {})


@rule("matmul", "bmm", "mm", "__matmul__")
def matmul(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    a, b = pair(args, kwargs)
    if min(a.ndim, b.ndim) == 1:  # vectors as matrices of one row or column
        out: Any = (a.unsqueeze(0) if a.ndim == 1 else a) @ (b.unsqueeze(-1) if b.ndim == 1 else b)
        out = out.squeeze(-1) if b.ndim == 1 else out
        return out.squeeze(-1 if b.ndim == 1 else -2) if a.ndim == 1 else out
    return bilinear(a, b, torch.matmul)


@rule("__rmatmul__")
def rmatmul(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    return matmul(torch.matmul, (args[1], args[0]), kwargs)


@rule("addcmul")
def addcmul(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    from .linear import add

    x, a, b = args[:3]
    product = a * b
    return add(torch.add, (x, product), {"alpha": kwargs.get("value", 1)})
