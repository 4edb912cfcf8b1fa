"""Further smooth elementwise functions, from their derivatives or from those of `elementwise`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..coefficients import Space, cauchy, pad
from ..series import Handler, Series
from . import bound, rule
from .elementwise import Coeffs, _integral, erf, exp, log, orders, power, ratio_gated, sigmoid, smooth, tanh


def plus(c: Tensor, number: float) -> Tensor:
    """a + number, in new memory."""
    c = c.clone()
    c[0].add_(number)
    return c


def integral_of(phi: Callable[[Tensor], Tensor], sign: float, constant: float, p: float, scale: float = 1.0) -> Coeffs:
    """φ(a) from φ'(a) = scale·(constant + sign·a²)^p."""

    def taylor(c: Tensor, space: Space) -> Tensor:
        square = cauchy(c, c, space)
        return _integral(c, phi(c[0]), power(plus(sign * square, constant), p, space) * scale, space)

    return taylor


def tangent(c: Tensor, space: Space) -> Tensor:
    """y' = (1 + y²)·a', order by order."""
    m = orders(c, space)
    a, y = pad(c, m), [c[0].tan()]
    slope: list[Tensor] = []
    for k in range(1, m):
        square = sum((y[i] * y[k - 1 - i] for i in range(1, k)), y[0] * y[k - 1])
        slope.append(square + 1 if k == 1 else square)
        y.append(sum((j * a[j] * slope[k - j] for j in range(2, k + 1)), a[1] * slope[k - 1]) / k)
    return torch.stack(y)


def hyperbolic(c: Tensor, space: Space) -> tuple[Tensor, Tensor]:
    """sinh and cosh together: each is the other's derivative."""
    m = orders(c, space)
    a, s, co = pad(c, m), [c[0].sinh()], [c[0].cosh()]
    for k in range(1, m):
        s.append(sum((j * a[j] * co[k - j] for j in range(2, k + 1)), a[1] * co[k - 1]) / k)
        co.append(sum((j * a[j] * s[k - j] for j in range(2, k + 1)), a[1] * s[k - 1]) / k)
    return torch.stack(s), torch.stack(co)


def _tanhshrink(c: Tensor, space: Space) -> Tensor:
    y = -tanh(c, space)
    return y + pad(c, len(y))


def _log_sigmoid(c: Tensor, space: Space) -> Tensor:
    return _integral(c, F.logsigmoid(c[0]), sigmoid(-c, space), space)


def _logit(c: Tensor, space: Space) -> Tensor:
    return log(c, space) - log(plus(-c, 1), space)


def _ndtr(c: Tensor, space: Space) -> Tensor:
    return plus(erf(c * math.sqrt(0.5), space) * 0.5, 0.5)


# name: (Taylor, φ'(0), gate strength); φ'(0) is None where φ(0) is not a number: then a·(φ(v)/v) is what is frozen.
ANALYTIC: dict[str, tuple[Coeffs, float | None, int]] = {
    "log1p": (lambda c, space: log(plus(c, 1), space), 1.0, 1),
    "expm1": (lambda c, space: plus(exp(c, space), -1), 1.0, 1),
    "exp2": (lambda c, space: exp(c * math.log(2), space), math.log(2), 2),
    "log2": (lambda c, space: log(c, space) / math.log(2), None, 1),
    "log10": (lambda c, space: log(c, space) / math.log(10), None, 1),
    "sinh": (lambda c, space: hyperbolic(c, space)[0], 1.0, 1),
    "cosh": (lambda c, space: hyperbolic(c, space)[1], 0.0, 1),
    "tan": (tangent, 1.0, 1),
    "asin arcsin": (integral_of(torch.asin, -1, 1, -0.5), 1.0, 1),
    "acos arccos": (integral_of(torch.acos, -1, 1, -0.5, -1.0), -1.0, 1),
    "atan arctan": (integral_of(torch.atan, 1, 1, -1.0), 1.0, 2),
    "asinh arcsinh": (integral_of(torch.asinh, 1, 1, -0.5), 1.0, 1),
    "acosh arccosh": (integral_of(torch.acosh, 1, -1, -0.5), None, 1),
    "atanh arctanh": (integral_of(torch.atanh, -1, 1, -1.0), 1.0, 1),
    "erfc": (lambda c, space: plus(-erf(c, space), 1), -2 / math.sqrt(math.pi), 2),
    "ndtr": (_ndtr, 1 / math.sqrt(2 * math.pi), 2),
    "expit": (sigmoid, 0.25, 2),
    "tanhshrink": (_tanhshrink, 0.0, 1),
    "logsigmoid log_sigmoid": (_log_sigmoid, 0.5, 1),
}


def _handler(taylor: Coeffs, slope: float | None, strength: int) -> Handler:
    def handle(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
        x = bound("input", func, args, kwargs)[0]
        if slope is not None:
            return smooth(x, func, taylor, slope, strength)
        return ratio_gated(x, func, strength) if x.space.gated else x.like(taylor(x.c, x.space), gate=strength)

    return handle


for _names, _what in ANALYTIC.items():
    rule(*_names.split())(_handler(*_what))


@rule("logit")
def logit(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """log(a/(1 − a)), a first kept within [eps, 1 − eps]."""
    x, eps = bound("input eps", func, args, kwargs)
    if eps is not None:
        return torch.logit(x.clamp(eps, 1 - eps))
    return ratio_gated(x, torch.logit, 1) if x.space.gated else x.like(_logit(x.c, x.space), gate=1)
