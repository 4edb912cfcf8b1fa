"""Max pools: the winner is frozen at the value (gated), or is the first of the largest series (Taylor, ties included);
and pools by norms."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..series import Handler
from . import bound, rule
from .selection import places, ranks

WINDOW = "input kernel_size stride padding dilation ceil_mode return_indices"
ADAPTIVE = "input output_size return_indices"


def max_pool(name: str, names: str, dims: int) -> Handler:
    """The handler of a max pool over `dims` axes: where it finds the largest, each coefficient is taken."""
    search = getattr(F, name)

    def handle(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        x, *options, return_indices = bound(names, func, args, kwargs)
        given = {k: v for k, v in zip(names.split()[1:], options, strict=False) if v is not None}
        exact = x.c.dtype in (torch.float32, torch.float64)  # places are whole numbers in this type
        if name == "max_pool2d" and exact and not (x.space.gated or x.m == 1 or given.get("ceil_mode")):
            batched = x.c if x.c.ndim == 5 else x.c.unsqueeze(1)
            at = _first_winners(batched, given)
            at = at if x.c.ndim == 5 else at.squeeze(0)
        else:
            plane = x.like(x.c.flatten(-dims))
            at = search(ranks(plane, -1).unflatten(-1, x.c.shape[-dims:]), **given, return_indices=True)[1]
        taken = at.flatten(-dims)
        out = x.c.flatten(-dims).gather(-1, taken.expand(x.m, *taken.shape)).unflatten(-1, at.shape[-dims:])
        if return_indices or "with_indices" in func.__name__ or (names == ADAPTIVE and not inspect.isfunction(func)):
            return x.like(out), places(x, at)
        return x.like(out)

    return handle


for _dims in (1, 2, 3):
    for _name, _names in ((f"max_pool{_dims}d", WINDOW), (f"adaptive_max_pool{_dims}d", ADAPTIVE)):
        rule(_name, f"{_name}_with_indices")(max_pool(_name, _names, _dims))


def _first_winners(c: Tensor, options: dict) -> Tensor:
    """Indices of the lexicographic winners: pool order 0, then let ties be decided by the next order, and so on."""
    best, at = F.max_pool2d(c[0], **options, return_indices=True)
    height, width = c.shape[-2:]
    places = torch.arange(height * width, device=c.device, dtype=c.dtype).view(1, 1, height, width)
    kernel = options["kernel_size"]
    size = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
    fold = {
        "kernel_size": size,
        "stride": options.get("stride") or size,
        "padding": options.get("padding", 0),
        "dilation": options.get("dilation", 1),
    }

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


@rule("lp_pool1d", "lp_pool2d", "lp_pool3d")
def lp_pool(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """(Σ a^p)^(1/p) over windows, max|a| for p = ∞."""
    x, p, size, stride, ceil_mode = bound("input norm_type kernel_size stride ceil_mode", func, args, kwargs)
    dims = int(func.__name__[-2])
    kernel = (size,) * dims if isinstance(size, int) else tuple(size)
    if abs(p) == math.inf:
        pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[dims]
        return math.copysign(1, p) * pool(math.copysign(1, p) * x.abs(), size, stride, 0, 1, bool(ceil_mode))
    average = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[dims]
    mean = average(x**p, kernel, stride if stride is not None else kernel, 0, bool(ceil_mode))
    return (mean * math.prod(kernel)) ** (1 / p)
