"""Functions constant in pieces: comparisons, signs, roundings, questions of truth. Their results are plain tensors.

Taylor: on a jump the first nonzero coefficient decides, the side of t → 0⁺. Gated: the value does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..coefficients import add_coeffs, lex_sign
from ..series import CannotCarry, Series
from . import bound, rule
from .linear import coefficients

INTEGERS = {
    "long": torch.int64,
    "int": torch.int32,
    "short": torch.int16,
    "char": torch.int8,
    "byte": torch.uint8,
}


def sign_of(x: Any) -> Any:
    """−1, 0 or 1: of the first nonzero coefficient (Taylor), of the value (gated), of a plain tensor's own."""
    if not isinstance(x, Series):
        return x
    if x.space.carry:
        raise CannotCarry
    return x.base().sign() if x.space.gated else lex_sign(x.c)


def floor_of(x: Any) -> Tensor:
    """⌊x⌋; Taylor: from below a whole number, where x falls away from it."""
    if not isinstance(x, Series):
        return torch.floor(x)
    if x.space.carry:
        raise CannotCarry
    v = x.base()
    floor = v.floor()
    if x.space.gated or x.m == 1:
        return floor
    return floor - ((floor == v) & (lex_sign(x.c[1:]) < 0)).to(v.dtype)


def ceil_of(x: Any) -> Tensor:
    return -floor_of(-x)


def trunc_of(x: Any) -> Tensor:
    return torch.where(sign_of(x) < 0, ceil_of(x), floor_of(x))


def round_of(x: Any) -> Tensor:
    """To the nearest whole number; halfway to the even one, or to where a Taylor series goes."""
    if x.space.carry:
        raise CannotCarry
    v = x.base()
    if x.space.gated or x.m == 1:
        return v.round()
    side = lex_sign(x.c[1:])
    halfway = (v - v.floor() == 0.5) & (side != 0)
    return torch.where(halfway, v.floor() + (side > 0), v.round())


@rule("gt", "lt", "ge", "le", "greater", "less", "greater_equal", "less_equal", "eq", "ne", "not_equal")
@rule("__gt__", "__lt__", "__ge__", "__le__", "__eq__", "__ne__")
def compare(func: Callable[..., Any], args: tuple, kwargs: dict) -> Tensor:
    """A plain mask: a comparison is locally constant. A tie is decided by the first nonzero coefficient."""
    a, b = bound("input other", func, args, kwargs)
    like = a if isinstance(a, Series) else b
    return func(sign_of(like.like(add_coeffs(coefficients(a, like), coefficients(b, like), -1))), 0)


@rule("sign", "sgn")
def sign(func: Callable[..., Any], args: tuple, kwargs: dict) -> Tensor:
    return sign_of(*bound("input", func, args, kwargs))


@rule("floor", "ceil", "trunc", "fix", "round")
def rounding(func: Callable[..., Any], args: tuple, kwargs: dict) -> Tensor:
    x, decimals = bound("input decimals", func, args, kwargs)
    rounded = {"floor": floor_of, "ceil": ceil_of, "trunc": trunc_of, "fix": trunc_of}.get(func.__name__, round_of)
    return rounded(x * 10**decimals) / 10**decimals if decimals else rounded(x)


@rule("frac")
def frac(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    x = bound("input", func, args, kwargs)[0]
    return x - trunc_of(x)


@rule("floor_divide", "__floordiv__")
def floor_divide(func: Callable[..., Any], args: tuple, kwargs: dict) -> Tensor:
    a, b = bound("input other", func, args, kwargs)
    return floor_of(a / b)


@rule("remainder", "__mod__", "fmod")
def remainder(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """a − b·⌊a/b⌋, or for fmod with a/b cut off towards zero."""
    a, b = bound("input other", func, args, kwargs)
    return a - b * (trunc_of if func.__name__ == "fmod" else floor_of)(a / b)


@rule("__rfloordiv__")
def rfloor_divide(func: Callable[..., Any], args: tuple, kwargs: dict) -> Tensor:
    return floor_of(args[1] / args[0])


@rule("__rmod__")
def rremainder(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    return args[1] - args[0] * floor_of(args[1] / args[0])


@rule("logical_not", "logical_and", "logical_or", "logical_xor", "any", "all", "count_nonzero", "nonzero", "argwhere")
@rule("bool", "signbit")
def truth(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """What holds of the signs."""
    return func(*map(sign_of, args), **{k: sign_of(v) for k, v in kwargs.items()})


@rule("isnan", "isinf", "isfinite", "isposinf", "isneginf", "isreal")
def finite(func: Callable[..., Any], args: tuple, kwargs: dict) -> Tensor:
    x = bound("input", func, args, kwargs)[0]
    if x.space.carry:
        raise CannotCarry
    return func(x.base())


@rule("nan_to_num")
def nan_to_num(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """The series itself where it is finite, else a constant."""
    x, *options = bound("input nan posinf neginf", func, args, kwargs)
    v = x.base()
    return torch.where(v.isfinite(), x, torch.nan_to_num(v, *options))  # type: ignore[return-value]


@rule(*INTEGERS)
def integers(func: Callable[..., Any], args: tuple, kwargs: dict) -> Tensor:
    return trunc_of(args[0]).to(INTEGERS[func.__name__])


@rule("to", "type", "type_as", "float", "double", "half", "bfloat16", "cfloat", "cdouble", "cpu", "cuda")
def cast(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """To another type or device; to a whole type a series is cut off, and a plain tensor stays plain."""
    x, others = args[0], (a.c[0] if isinstance(a, Series) else a for a in args[1:])
    options = {k: v for k, v in kwargs.items() if k != "memory_format"}  # a series is laid out as suits its rules
    options |= {k: v.c[0] for k, v in kwargs.items() if isinstance(v, Series)}
    if not isinstance(x, Series):
        return func(x, *others, **options)
    c = func(x.c, *others, **options)
    if c is x.c:
        return x.view_of(c)
    if isinstance(c, str) or c.is_floating_point() or c.is_complex():
        return c if isinstance(c, str) else x.like(c, gate=x.gate)
    return (sign_of(x) if c.dtype == torch.bool else trunc_of(x)).to(c.dtype)
