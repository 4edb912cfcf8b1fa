"""Gated semantics with the statistics of norms, or attention, computed from the paths so far instead of frozen.

A function f recomputed is taken at the partial sums S_k = Σ_{j≤k} c_j, "paths of length up to k", and gives
y_0 = f(S_0), y_k = f(S_k) − f(S_{k−1}): the y_j up to k add up to f of the paths up to k, all of them to f(x).
Composition keeps this form, so a norm or attention written out in elementary calls agrees with the fused one: a factor
that is to be recomputed carries the gate `TELESCOPED`, and what is computed with it is telescoped in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..coefficients import pad
from ..errors import ModeError
from ..series import TELESCOPED, Handler, Series, name_of
from . import overwrite
from .attention import attention, multihead, softmax
from .contractions import einsum
from .elementwise import _powers
from .linear import series_in
from .norm import group_norm, instance_norm, layer_norm, rms_norm
from .products import matmul, mul
from .statistics import local_response_norm, normalize

CHOICES = ("norm", "attention")
# Functions that are recomputed whole: what of, and the gate of their result.
WHOLE: dict[Handler, tuple[str, int]] = {
    **dict.fromkeys((layer_norm, rms_norm, group_norm, instance_norm, local_response_norm, normalize), ("norm", 0)),
    **dict.fromkeys((attention, multihead), ("attention", 0)),
    softmax: ("attention", TELESCOPED),
}
# Files of functions that are not linear in the series they are given: telescoped if one of those is.
CURVED = {f"{__package__}.{home}" for home in ("analytic", "attention", "elementwise", "piecewise", "products")}


def recompute(handler: Handler, func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """What a call gives in a space where something is recomputed."""
    functional = getattr(handler, "functional", None)
    if functional is not None:  # an in-place form
        out = recompute(handler.handler, functional, args, kwargs)  # type: ignore[attr-defined]
        return overwrite(args[0], out)
    found = series_in(args, kwargs)
    wanted = found[0].space.recompute
    telescoped = [x.gate == TELESCOPED for x in found]
    gate = TELESCOPED if all(telescoped) else 0
    if handler in WHOLE and (WHOLE[handler][0] in wanted or any(telescoped)):
        return telescope(func, args, kwargs, gate=gate or WHOLE[handler][1])
    if handler in (matmul, einsum) and len(found) > 1 and "attention" in wanted and not any(telescoped):
        return telescope(func, args, kwargs, gate=TELESCOPED)  # scores, to be made a pattern
    if any(telescoped) and (handler is einsum or handler.__module__ in CURVED):
        return telescope(func, args, kwargs, gate=gate)
    if found[0].squared is not None and func.__name__ in ("mean", "sum"):  # of squares: a statistic
        x, square = found[0], found[0].squared
        swapped = tuple(square if a is x else a for a in args)
        return marked(handler(func, swapped, {k: square if v is x else v for k, v in kwargs.items()}))
    squared = telescope(func, args, kwargs, gate=0) if "norm" in wanted and is_square(handler, func, args) else None
    out = handler(func, args, kwargs)
    if squared is not None:
        out.squared = squared
    return marked(out) if gate else out


def is_square(handler: Handler, func: Callable[..., Any], args: tuple) -> bool:
    """x², x·x: on the way to a mean of squares it is recomputed."""
    if handler is mul:
        return len(args) > 1 and args[0] is args[1]
    name = func.__name__.strip("_")
    return handler is _powers and (name == "square" or (name == "pow" and len(args) > 1 and _is_two(args[1])))


def _is_two(p: Any) -> bool:
    return not isinstance(p, Series) and (not isinstance(p, Tensor) or p.numel() == 1) and float(p) == 2


def marked(out: Any) -> Any:
    """Results as factors that are recomputed."""
    for x in out if isinstance(out, list | tuple) else (out,):
        if isinstance(x, Series):
            x.gate = TELESCOPED
    return out


def telescope(func: Callable[..., Any], args: tuple, kwargs: dict, *, gate: int) -> Any:
    """y_k = f(S_k) − f(S_{k−1}) over the partial sums of every series among the arguments."""
    found = series_in(args, kwargs)
    m = max(x.m for x in found)
    sums = {id(x): pad(x.c, m).cumsum(0) for x in found}

    def upto(k: int, value: Any) -> Any:
        if isinstance(value, Series):
            return sums[id(value)][k]
        if isinstance(value, list | tuple) and any(isinstance(v, Series) for v in value):
            return [upto(k, v) for v in value]
        return value

    outs = [func(*(upto(k, a) for a in args), **{n: upto(k, v) for n, v in kwargs.items()}) for k in range(m)]
    return differences(func, outs, found[0], gate)


def differences(func: Callable[..., Any], outs: list[Any], like: Series, gate: int) -> Any:
    """Results at the partial sums to the series of their differences; to the last where they are no numbers."""
    last = outs[-1]
    if isinstance(last, list | tuple):
        return type(last)(differences(func, list(part), like, gate) for part in zip(*outs, strict=True))
    if not isinstance(last, Tensor) or not (last.is_floating_point() or last.is_complex()):
        return last
    c = torch.stack(outs)
    same = c[1:] == c[:-1]  # infinite scores of masked places
    c = torch.cat([c[:1], torch.where(same, torch.zeros_like(c[1:]), c[1:] - c[:-1])])
    if bool(c.isnan().any()) and not bool(last.isnan().any()):
        raise ModeError(
            f"{name_of(func)} cannot be recomputed: it is not a number on the paths up to some length "
            "(a division by zero, where no path is that short); leave it frozen, recompute=()"
        )
    return like.like(c, gate=gate)
