"""Maxima: the winner is frozen at the value (gated), or is the first of the largest series (Taylor, ties included)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MissingRuleError
from ..series import CannotCarry, Series
from . import RULES, argument, rule, spellings


def winners(x: Series, windows: Tensor) -> Tensor:
    """Index of the winner on the last axis of windows (m, …, size): lexicographic in the coefficients."""
    if x.space.gated:
        return windows.sum(0).argmax(-1)
    alive = torch.ones_like(windows[0], dtype=torch.bool)
    for ck in windows:
        best = ck.masked_fill(~alive, -torch.inf).amax(-1, keepdim=True)
        alive = alive & (ck == best)
    return alive.to(torch.uint8).argmax(-1)


def max_pool2d(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    given = dict(zip(names, args, strict=False)) | kwargs
    x = given.pop("input")
    if given.pop("return_indices", False):
        raise MissingRuleError("max_pool2d with return_indices=True on a series: pool without indices instead")
    m = len(x.c)
    batched = x.c if x.c.ndim == 5 else x.c.unsqueeze(1)
    if x.space.gated or m == 1:
        _, at = F.max_pool2d(batched.sum(0), **given, return_indices=True)
    else:
        at = _first_winners(batched, given)
    flat = batched.flatten(-2)
    out = flat.gather(-1, at.flatten(-2).expand(m, *at.shape[:-2], -1)).unflatten(-1, at.shape[-2:])
    return x.like(out if x.c.ndim == 5 else out.squeeze(1))


def _first_winners(c: Tensor, options: dict) -> Tensor:
    """Indices of the lexicographic winners: pool order 0, then let ties be decided by the next order, and so on."""
    best, at = F.max_pool2d(c[0], **options, return_indices=True)
    height, width = c.shape[-2:]
    places = torch.arange(height * width, device=c.device, dtype=c.dtype).view(1, 1, height, width)
    kernel = options["kernel_size"]
    size = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
    stride = options.get("stride") or size
    fold = {
        "kernel_size": size,
        "stride": stride,
        "padding": options.get("padding", 0),
        "dilation": options.get("dilation", 1),
    }
    if options.get("ceil_mode"):
        return at  # unfold has no ceil mode; ties there go to the first, as in max_pool2d itself

    def windows(image: Tensor) -> Tensor:
        return F.unfold(image, **fold).unflatten(1, (image.shape[1], -1))  # (batch, channels, window, places)

    inside = windows(torch.ones_like(c[0])) > 0
    alive = inside & (windows(c[0]) == best.flatten(-2).unsqueeze(2))
    for ck in c[1:]:
        if not bool((alive.sum(2) > 1).any()):
            break
        w = windows(ck).masked_fill(~alive, -torch.inf)
        alive = alive & (w == w.amax(2, keepdim=True))
    index = windows(places.expand_as(c[0])).gather(2, alive.to(torch.uint8).argmax(2, keepdim=True))
    return index.squeeze(2).view_as(at).long()


RULES[F.max_pool2d] = max_pool2d
for _func in spellings("max_pool2d"):
    RULES[_func] = max_pool2d


@rule("amax", "max")
def amax(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    x = args[0] if args else kwargs["input"]
    dim = argument(args, kwargs, 1, "dim")
    if isinstance(dim, Series) or (isinstance(x, Tensor) and isinstance(dim, Tensor)):
        from .piecewise import extremum

        return extremum(torch.maximum, (x, dim), {})
    keep = argument(args, kwargs, 2, "keepdim", False)
    if dim is None or (isinstance(dim, tuple | list) and len(dim) != 1):
        dims = range(x.c.ndim - 1) if dim is None or not dim else [d % (x.c.ndim - 1) for d in dim]
        rest = [d for d in range(x.c.ndim - 1) if d not in dims]
        c = x.c.permute(0, *(d + 1 for d in rest), *(d + 1 for d in dims)).flatten(len(rest) + 1)
        out = c.gather(-1, winners(x, c).unsqueeze(-1).expand(*c.shape[:-1], 1)).squeeze(-1)
        for d in sorted(dims) if keep else ():
            out = out.unsqueeze(d + 1)
        return x.like(out)
    axis = (dim if isinstance(dim, int) else dim[0]) % (x.c.ndim - 1) + 1
    c = x.c.movedim(axis, -1)
    at = winners(x, c).unsqueeze(-1)
    out = c.gather(-1, at.expand(*c.shape[:-1], 1)).movedim(-1, axis)
    if func.__name__ != "amax" and x.space.carry:  # the indices say nothing of the real value's
        raise CannotCarry
    at = at.movedim(-1, axis - 1)
    values = x.like(out if keep else out.squeeze(axis))
    if func.__name__ == "amax":
        return values
    return torch.return_types.max((values, at if keep else at.squeeze(axis - 1)))
