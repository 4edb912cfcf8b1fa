"""Products and quotients of series: Cauchy products (Taylor); one factor frozen at its value (gated)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..coefficients import add_coeffs, align, cauchy, shift
from ..errors import MissingRuleError
from ..series import Series
from . import rule

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
    a, b = args[:2] if len(args) > 1 else (args[0], kwargs["other"])
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        x, number = (a, b) if isinstance(a, Series) else (b, a)
        return x.like(x.times(number))
    if isinstance(a, Series) and isinstance(b, Series) and 0 in (a.c.ndim - 1, b.c.ndim - 1):
        by, x = (a, b) if a.c.ndim == 1 else (b, a)
        if not by.space.gated or is_variable(by):
            return scalar_product(by, x)
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
    from ..errors import MissingRuleError
    from .elementwise import power

    if kwargs.get("rounding_mode"):
        raise MissingRuleError("division with rounding_mode on a series: it is piecewise constant; divide, then round")
    a, b = args[:2] if len(args) > 1 else (args[0], kwargs["other"])
    if not isinstance(b, Series):
        return a.like(a.c / b) if not isinstance(b, Tensor) else a.like(align(a.c, b.ndim) / b)
    if b.space.gated:
        value = b.base()
        return a.like(align(a.c, value.ndim) / value) if isinstance(a, Series) else b.like((a / value).unsqueeze(0))
    inverse = b.like(power(b.c, -1.0, b.space))
    return mul(torch.mul, (inverse, a), {})


@rule("reciprocal")
def reciprocal(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    return div(torch.div, (torch.ones((), dtype=args[0].c.dtype), args[0]), {})


@rule("__rdiv__", "__rtruediv__")
def rdiv(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    return div(torch.div, (torch.as_tensor(args[1], dtype=args[0].c.dtype), args[0]), {})


@rule("matmul", "bmm", "mm", "__matmul__")
def matmul(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    a, b = args[:2] if len(args) > 1 else (args[0], kwargs.get("mat2", kwargs.get("other")))
    if min(a.ndim, b.ndim) == 1 and not (isinstance(a, Series) and isinstance(b, Series)):
        from .linear import linear

        return linear(torch.matmul, (a, b), {})
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


def _pairs(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Coefficients in pairs, a single one with each of the others."""
    return [(x[i % len(x)], y[i % len(y)]) for i in range(max(len(x), len(y)))]


@rule("einsum")
def einsum(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """An einsum with one or two series factors."""
    equation = args[0]
    operands = list(args[1]) if len(args) == 2 and isinstance(args[1], list | tuple) else list(args[1:])
    at = [i for i, x in enumerate(operands) if isinstance(x, Series)]

    def product(*values: Tensor) -> Tensor:
        full = list(operands)
        for i, v in zip(at, values, strict=True):
            full[i] = v
        return torch.einsum(equation, *full)

    first = operands[at[0]]
    if len(at) == 1:
        return first.like(torch.stack([product(ck) for ck in first.c]))
    if len(at) == 2:
        a, b = (operands[i] for i in at)
        if a.space.gated:
            operands[at[0]], operands[at[1]] = freeze_one(a, b)
            return einsum(func, (equation, operands), kwargs)
        return first.like(cauchy(a.c, b.c, a.space, lambda x, y: torch.stack([product(p, q) for p, q in _pairs(x, y)])))
    raise MissingRuleError(f"einsum('{equation}') of {len(at)} series: write it as products of two")
