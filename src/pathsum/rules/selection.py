"""Maxima, sorts and other choices of entries: the places are frozen at the value (gated), or are those of the
lexicographic order of the coefficients, which is the order of the series for t → 0⁺ (Taylor)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..series import CannotCarry, Series
from . import bound, rule
from .piecewise import extremum


def ranks(x: Series, dim: int) -> Tensor:
    """A plain tensor whose entries along `dim` are in the order of the series: its value, or its rank among them."""
    if x.space.gated or x.m == 1:
        return x.base()
    c = x.c.movedim(_axis(x, dim), -1)
    first = c[0].sort(-1).values
    if not bool((first[..., 1:] == first[..., :-1]).any()):
        return x.c[0]
    at = torch.arange(c.shape[-1], device=c.device).expand(c.shape[1:])
    for ck in c.flip(0):  # stable sorts from the last order to the first
        at = at.gather(-1, ck.gather(-1, at).argsort(dim=-1, stable=True))
    ordered = c.gather(-1, at.expand(c.shape))
    steps = (ordered[..., 1:] != ordered[..., :-1]).any(0).double().cumsum(-1)
    rank = torch.zeros_like(ordered[0], dtype=torch.float64).scatter(-1, at[..., 1:], steps)
    return rank.movedim(-1, _axis(x, dim) - 1)


def _axis(x: Series, dim: int) -> int:
    """A dimension of the series as one of its coefficients."""
    return dim % max(x.c.ndim - 1, 1) + 1


def places(x: Series, places: Tensor) -> Tensor:
    """Indices that a model reads: they say nothing of the real value's."""
    if x.space.carry:
        raise CannotCarry
    return places


def take(x: Series, at: Tensor, dim: int) -> Series:
    """The entries at the indices `at` along `dim`."""
    axis = _axis(x, dim)
    return x.like(x.c.gather(axis, at.expand(x.m, *at.shape)))


def flat(x: Series) -> Series:
    return x.like(x.c.flatten(1) if x.c.ndim > 1 else x.c.unsqueeze(-1))


def chosen(x: Series, dim: int, choose: Callable[[Tensor, int], Any], *, keepdim: bool = True) -> Any:
    """What a function of the ranks that returns (values, indices), both with `dim` kept, makes of the series."""
    if x.c.ndim == 1:
        return chosen(flat(x), 0, choose, keepdim=False)
    found = choose(ranks(x, dim), dim)
    values, at = take(x, found[1], dim), places(x, found[1])
    return type(found)((values, at) if keepdim else (values.squeeze(dim), at.squeeze(dim)))


def winner(x: Series, dims: list[int], keepdim: bool, *, least: bool = False) -> tuple[Series, Tensor]:
    """The largest (or least) entry over `dims`, and its place among them: of equal ones the first."""
    if x.c.ndim == 1:
        return x.like(x.c), torch.zeros((), dtype=torch.long, device=x.c.device)
    rest = [d for d in range(x.c.ndim - 1) if d not in dims]
    c = x.c.permute(0, *(d + 1 for d in rest), *(d + 1 for d in dims)).flatten(len(rest) + 1)
    at = winners(x, -c if least else c).unsqueeze(-1)
    out = c.gather(-1, at.expand(len(c), *at.shape)).squeeze(-1)
    at = at.squeeze(-1)
    for d in sorted(dims) if keepdim else ():
        out, at = out.unsqueeze(d + 1), at.unsqueeze(d)
    return x.like(out), at


def winners(x: Series, windows: Tensor) -> Tensor:
    """Index of the winner on the last axis of windows (m, …, size): lexicographic in the coefficients."""
    if x.space.gated:
        return windows.sum(0).argmax(-1)
    alive = torch.ones_like(windows[0], dtype=torch.bool)
    for ck in windows:
        best = ck.masked_fill(~alive, -torch.inf).amax(-1, keepdim=True)
        alive = alive & (ck == best)
    return alive.to(torch.uint8).argmax(-1)


def axes(x: Series, dim: Any) -> list[int]:
    """The dimensions meant: all for None or ()."""
    ndim = x.c.ndim - 1
    if dim is None or dim == ():
        return list(range(ndim))
    return [d % max(ndim, 1) for d in ((dim,) if isinstance(dim, int) else dim)] if ndim else []


@rule("amax", "amin")
def amax(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x, dim, keepdim = bound("input dim keepdim", func, args, kwargs)
    return winner(x, axes(x, dim), bool(keepdim), least="min" in func.__name__)[0]


@rule("max", "min")
def maximum(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Of all entries; along a dimension, with indices; or of two tensors."""
    least = "min" in func.__name__
    if "other" in kwargs or (len(args) > 1 and isinstance(args[1], Tensor)):
        return extremum(torch.minimum if least else torch.maximum, args, kwargs)
    x, dim, keepdim = bound("input dim keepdim", func, args, kwargs)
    values, at = winner(x, axes(x, dim), bool(keepdim), least=least)
    if dim is None:
        return values
    kinds: Any = torch.return_types
    return (kinds.min if least else kinds.max)((values, places(x, at)))


@rule("aminmax")
def aminmax(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    x, dim, keepdim = bound("input dim keepdim", func, args, kwargs)
    low, high = (winner(x, axes(x, dim), bool(keepdim), least=least)[0] for least in (True, False))
    return torch.return_types.aminmax((low, high))


@rule("argmax", "argmin")
def argmax(func: Callable[..., Any], args: tuple, kwargs: dict) -> Tensor:
    x, dim, keepdim = bound("input dim keepdim", func, args, kwargs)
    return places(x, winner(x, axes(x, dim), bool(keepdim), least="min" in func.__name__)[1])


@rule("sort", "argsort", "msort")
def sort(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    x, dim, descending, stable = bound("input dim descending stable", func, args, kwargs, dim=-1, descending=False)
    if func.__name__ == "msort":
        return take(x, torch.sort(ranks(x, 0), dim=0).indices, 0)
    out = chosen(x, dim, lambda r, d: torch.sort(r, dim=d, descending=descending, stable=bool(stable)))
    return out[1] if func.__name__ == "argsort" else out


@rule("topk")
def topk(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    x, k, dim, largest, ordered = bound(
        "input k dim largest sorted", func, args, kwargs, dim=-1, largest=True, sorted=True
    )
    return chosen(x, dim, lambda r, d: torch.topk(r, k, d, largest, ordered))


@rule("kthvalue")
def kthvalue(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    x, k, dim, keepdim = bound("input k dim keepdim", func, args, kwargs, dim=-1)
    return chosen(x, dim, lambda r, d: torch.kthvalue(r, k, d, True), keepdim=bool(keepdim))


@rule("median", "nanmedian")
def median(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    x, dim, keepdim = bound("input dim keepdim", func, args, kwargs)
    if dim is not None:
        return chosen(x, dim, lambda r, d: func(r, d, True), keepdim=bool(keepdim))
    return take(flat(x), torch.median(ranks(flat(x), 0), 0, True).indices, 0).squeeze(0)


@rule("cummax", "cummin")
def cummax(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    x, dim = bound("input dim", func, args, kwargs)
    return chosen(x, dim, func)
