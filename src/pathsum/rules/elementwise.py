"""Smooth elementwise functions.

Taylor: y' = φ'(a)·a', that is k·y_k = Σ_{j=1..k} j·a_j·d_{k−j} with d the series of φ'(a).
Gated: φ(a) = a·g + φ(0), g = (φ(v) − φ(0))/v at the value v, φ'(0) where v = 0; φ(0) is a bias path of order 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..coefficients import Space, add_coeffs, cauchy, fits, multiply_into, needs_grad, pad
from ..series import Series
from . import argument, overwrite, rule

Coeffs = Callable[[Tensor, Space], Tensor]  # Taylor coefficients of φ(a)


class Orders:
    """Coefficients computed one after the other: one block of memory, or tensors of their own where gradients run."""

    def __init__(self, first: Tensor, m: int, *inputs: Tensor) -> None:
        self.block = None
        if not (torch.is_grad_enabled() and needs_grad(first, *inputs)):
            self.block = torch.empty((m, *first.shape), dtype=first.dtype, device=first.device)
            self.block[0] = first
        self.all = [first] if self.block is None else [self.block[0]]

    def start(self, x: Tensor, y: Tensor, value: float) -> Tensor:
        """The next coefficient, so far value·x·y."""
        product = x * y if self.block is None else torch.mul(x, y, out=self.block[len(self.all)])
        self.all.append(product if value == 1 else product.mul_(value))
        return self.all[-1]

    def stacked(self) -> Tensor:
        return torch.stack(self.all) if self.block is None else self.block


def recurrence(c: Tensor, y0: Tensor, slope: Callable[[int, list[Tensor]], Tensor], m: int) -> Tensor:
    """Solve y' = d·a' order by order; `slope(k, y)` gives d_k once y_0..y_k are known."""
    y = Orders(y0, m, c)
    d = [slope(0, y.all)]
    for k in range(1, m):
        yk = y.start(c[1], d[k - 1], 1 / k)
        for j in range(2, min(k, c.shape[0] - 1) + 1):
            yk.addcmul_(c[j], d[k - j], value=j / k)
        if k < m - 1:
            d.append(slope(k, y.all))
    return y.stacked()


def orders(c: Tensor, space: Space) -> int:
    """A nonlinear function of a series reaches every order, unless the series is a constant."""
    return 1 if len(c) == 1 else space.slots


def _minus_square(y: list[Tensor], k: int) -> Tensor:
    """−[y²]_k."""
    if k == 0:
        return -(y[0] * y[0])
    out = (y[0] * y[k]).mul_(-2)
    for j in range(1, (k + 1) // 2):
        out.addcmul_(y[j], y[k - j], value=-2)
    return out if k % 2 else out.addcmul_(y[k // 2], y[k // 2], value=-1)


def exp(c: Tensor, space: Space) -> Tensor:
    return recurrence(c, c[0].exp(), lambda k, y: y[k], orders(c, space))


def tanh(c: Tensor, space: Space) -> Tensor:
    def slope(k: int, y: list[Tensor]) -> Tensor:
        return _minus_square(y, k) if k else 1 - y[0] * y[0]

    return recurrence(c, c[0].tanh(), slope, orders(c, space))


def sigmoid(c: Tensor, space: Space) -> Tensor:
    return recurrence(c, c[0].sigmoid(), lambda k, y: _minus_square(y, k).add_(y[k]), orders(c, space))


def log(c: Tensor, space: Space) -> Tensor:
    d = power(c, -1.0, space)
    return recurrence(c, c[0].log(), lambda k, y: d[k], orders(c, space))


def power(c: Tensor, p: float, space: Space) -> Tensor:
    """a^p by k·a_0·y_k = Σ_{j=1..k} (p·j − k + j)·a_j·y_{k−j}; needs a_0 ≠ 0 unless p is a small whole number."""
    if p in (0, 1, 2, 3, 4):
        if p == 0:
            return torch.ones_like(c[:1])
        square = c.clone() if p == 1 else cauchy(c, c, space)
        if p == 3 and fits(square, c, space) and not (torch.is_grad_enabled() and needs_grad(c)):
            return multiply_into(square, c)
        return square if p <= 2 else cauchy(square, c if p == 3 else square, space)
    m = orders(c, space)
    y = Orders(c[0].pow(p), m, c)
    inverse = c[0].reciprocal()
    for k in range(1, m):
        yk = y.start(c[1], y.all[k - 1], (p - k + 1) / k)
        for j in range(2, min(k, c.shape[0] - 1) + 1):
            yk.addcmul_(c[j], y.all[k - j], value=(p * j - k + j) / k)
        yk.mul_(inverse)
    return y.stacked()


def _integral(c: Tensor, y0: Tensor, d: Tensor, space: Space) -> Tensor:
    """φ(a) from the series d of φ'(a)."""
    d = pad(d, orders(c, space))
    return recurrence(c, y0, lambda k, y: d[k], orders(c, space))


def erf(c: Tensor, space: Space) -> Tensor:
    d = exp(-cauchy(c, c, space), space) * (2 / math.sqrt(math.pi))
    return _integral(c, c[0].erf(), d, space)


def softplus(c: Tensor, space: Space) -> Tensor:
    return _integral(c, F.softplus(c[0], threshold=1e9), sigmoid(c, space), space)


def gelu(c: Tensor, space: Space) -> Tensor:
    phi = erf(c * math.sqrt(0.5), space) * 0.5
    phi[0].add_(0.5)
    return cauchy(c, phi, space)


def gelu_tanh(c: Tensor, space: Space) -> Tensor:
    cube = cauchy(cauchy(c, c, space), c, space)
    inner = add_coeffs(cube * 0.044715, c) * math.sqrt(2 / math.pi)
    phi = tanh(inner, space) * 0.5
    phi[0].add_(0.5)
    return cauchy(c, phi, space)


def silu(c: Tensor, space: Space) -> Tensor:
    return cauchy(c, sigmoid(c, space), space)


def mish(c: Tensor, space: Space) -> Tensor:
    return cauchy(c, tanh(softplus(c, space), space), space)


def sin(c: Tensor, space: Space) -> Tensor:
    return _sin_cos(c, space)[0]


def cos(c: Tensor, space: Space) -> Tensor:
    return _sin_cos(c, space)[1]


def _sin_cos(c: Tensor, space: Space) -> tuple[Tensor, Tensor]:
    m = orders(c, space)
    c = pad(c, m)
    s, co = [c[0].sin()], [c[0].cos()]
    for k in range(1, m):
        s.append(sum((j * c[j] * co[k - j] for j in range(2, k + 1)), c[1] * co[k - 1]) / k)
        co.append(-sum((j * c[j] * s[k - j] for j in range(2, k + 1)), c[1] * s[k - 1]) / k)
    return torch.stack(s), torch.stack(co)


# name: (Taylor, φ'(0), gate strength); φ itself is the function called, so that the value is the model's own.
SMOOTH: dict[str, tuple[Coeffs, float, int]] = {
    "tanh": (tanh, 1.0, 2),
    "sigmoid": (sigmoid, 0.25, 2),
    "exp": (exp, 1.0, 2),
    "erf": (erf, 2 / math.sqrt(math.pi), 2),
    "silu": (silu, 0.5, 1),
    "mish": (mish, math.tanh(math.log(2)), 1),
    "sin": (sin, 1.0, 1),
    "cos": (cos, 0.0, 1),
}


def gated(x: Series, phi: Callable[[Tensor], Tensor], slope: float, strength: int) -> Series:
    """a·g + φ(0), g frozen at the value."""
    v = x.base()
    at_zero = phi(torch.zeros((), dtype=v.dtype, device=v.device))
    zero, value = v == 0, phi(v)
    g = (value - at_zero) / torch.where(zero, torch.ones_like(v), v)
    out = x.times(torch.where(zero, torch.full_like(v, slope), g))
    constant = bool(at_zero)
    if constant:
        out[0].add_(at_zero)
    if strength == 2 or constant:  # functions that may be given infinities, the scores of masked places
        out = settled(out, v.isinf(), value)
    return x.like(out, gate=strength)


def settled(out: Tensor, where: Tensor, value: Tensor) -> Tensor:
    """Coefficients that in some places are a constant: all of it of order 0."""
    if not bool(where.any()):
        return out
    rest = torch.where(where, torch.zeros_like(value), out[1:])
    return torch.cat([torch.where(where, value, out[0]).unsqueeze(0), rest])


def smooth(x: Series, phi: Callable[[Tensor], Tensor], taylor: Coeffs, slope: float, strength: int) -> Series:
    if x.space.gated:
        return gated(x, phi, slope, strength)
    return x.like(taylor(x.c, x.space), gate=strength)


for _name, (_taylor, _slope, _strength) in SMOOTH.items():

    def _handle(
        func: Any,
        args: tuple,
        kwargs: dict,
        name: str = _name,
        taylor: Coeffs = _taylor,
        slope: float = _slope,
        strength: int = _strength,
    ) -> Series:
        x = args[0] if args else kwargs["input"]
        options = {k: v for k, v in kwargs.items() if k not in ("input", "inplace")}
        out = smooth(x, lambda v: func(v, **options), taylor, slope, strength)
        return overwrite(x, out) if argument(args, kwargs, 1, "inplace", False) is True else out

    rule(_name)(_handle)


@rule("softplus")
def _softplus(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """log(1 + exp(βa))/β, and a itself where βa exceeds the threshold, as torch computes it."""
    x = args[0] if args else kwargs["input"]
    beta, threshold = argument(args, kwargs, 1, "beta", 1.0), argument(args, kwargs, 2, "threshold", 20.0)

    def taylor(c: Tensor, space: Space) -> Tensor:
        linear = c[0] * beta > threshold
        bent = softplus(torch.where(linear, torch.zeros_like(c), c) * beta, space) / beta
        return torch.where(linear, pad(c, len(bent)), bent)

    return smooth(x, lambda v: F.softplus(v, beta, threshold), taylor, 0.5, 1)


@rule("gelu")
def _gelu(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x = args[0] if args else kwargs["input"]
    approximate = kwargs.get("approximate", "none")
    taylor = gelu_tanh if approximate == "tanh" else gelu
    return smooth(x, lambda v: F.gelu(v, approximate=approximate), taylor, 0.5, 1)


def ratio_gated(x: Series, phi: Callable[[Tensor], Tensor], strength: int) -> Series:
    """a·(φ(v)/v), for functions whose φ(0) is no number or need not be known; where v = 0 all of φ is of order 0."""
    v = x.base()
    value, zero = phi(v), v == 0
    out = x.c * torch.where(zero, torch.zeros_like(value), value / v)
    return x.like(settled(out, zero, value), gate=strength)


@rule("log", "sqrt", "rsqrt", "pow", "__pow__", "square")
def _powers(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """log and powers; gated: a·(φ(v)/v)."""
    name = func.__name__.strip("_")
    x, p = args[0] if args else kwargs["input"], {"sqrt": 0.5, "rsqrt": -0.5}.get(name, 2.0)
    if name == "pow":
        p = argument(args, kwargs, 1, "exponent")
        if not isinstance(x, Series) or isinstance(p, Tensor):
            from .composed import general_power

            return general_power(x, p)
    if x.space.gated:
        return ratio_gated(x, torch.log if name == "log" else lambda v: v.pow(p), 1)
    return x.like(log(x.c, x.space) if name == "log" else power(x.c, float(p), x.space), gate=1)
