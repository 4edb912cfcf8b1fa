"""Linear and affine functions: applied to all coefficients at once; constants enter order 0 only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..coefficients import add_coeffs, align, pad
from ..errors import MissingRuleError, ModeError
from ..series import RULES, Series
from . import argument, bound, overwrite, pair, rule

VIEWS = (
    "unflatten squeeze movedim moveaxis expand expand_as view_as reshape_as narrow select unbind tensor_split t "
    "diagonal unfold ravel detach broadcast_to split_with_sizes adjoint hsplit vsplit dsplit"
).split()
LINEAR = (
    "sum mean neg negative positive flip fliplr flipud roll tril triu cumsum repeat repeat_interleave tile "
    "clone cat concat concatenate stack hstack vstack dstack index_select gather take_along_dim rot90 diag_embed "
    "trace pixel_shuffle pixel_unshuffle channel_shuffle fold real conj resolve_conj resolve_neg nansum nanmean"
).split()


def series_in(args: tuple, kwargs: dict) -> list[Series]:
    """The series among the arguments, also inside lists and tuples."""
    found: list[Series] = []
    for a in (*args, *kwargs.values()):
        if isinstance(a, Series):
            found.append(a)
        elif isinstance(a, list | tuple):
            found += [x for x in a if isinstance(x, Series)]
    return found


class _Slot(int):
    """Stands for the i-th series among the arguments of a linear map."""


def _take(a: Any, coeffs: list[Tensor], inside: bool = False) -> Any:
    """Move series (and, inside a list with one, plain tensors) to `coeffs`, leaving slots."""
    if isinstance(a, Series) or (inside and isinstance(a, Tensor)):
        coeffs.append(a.c if isinstance(a, Series) else a.unsqueeze(0))
        return _Slot(len(coeffs) - 1)
    if isinstance(a, list | tuple) and any(isinstance(x, Series) for x in a):
        return [_take(x, coeffs, inside=True) for x in a]
    return a


def _fill(a: Any, values: tuple[Tensor, ...]) -> Any:
    """Put tensors into the slots."""
    if isinstance(a, _Slot):
        return values[a]
    return [_fill(x, values) for x in a] if isinstance(a, list) and any(isinstance(x, _Slot) for x in a) else a


def linear(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """A linear map of its tensor arguments: mapped over the order axis; listed plain tensors (cat) are order 0."""
    first = series_in(args, kwargs)[0]
    coeffs: list[Tensor] = []
    slots = [_take(a, coeffs) for a in args]
    named = {k: _take(v, coeffs) for k, v in kwargs.items()}
    m = max(map(len, coeffs))

    def apply(*values: Tensor) -> Any:
        return func(*(_fill(a, values) for a in slots), **{k: _fill(a, values) for k, a in named.items()})

    out = torch.vmap(apply, randomness="error")(*(pad(c, m) for c in coeffs))
    if isinstance(out, Tensor):
        return first.like(out)
    return type(out)(first.like(o) for o in out)


def viewing(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """A view: the series made shares memory, so that an in-place change of one marks the other stale."""
    x = args[0] if args else kwargs["input"]
    if not isinstance(x, Series):  # a plain tensor seen in the shape of a series
        return func(x, *(a.c[0] if isinstance(a, Series) else a for a in args[1:]), **kwargs)
    out = linear(func, args, kwargs)
    return x.view_of(out.c) if isinstance(out, Series) else type(out)(x.view_of(o.c) for o in out)


rule(*VIEWS)(viewing)
rule(*LINEAR)(linear)
for getter in ("T", "mT", "H", "mH", "data"):
    RULES[getattr(torch.Tensor, getter).__get__] = lambda func, args, kwargs: linear(func, args, kwargs)


# The views that models take most often, on the coefficients directly: vmap costs more than they do.


def _sizes(args: tuple, kwargs: dict, name: str) -> tuple[int, ...]:
    """Sizes or dimensions given one by one, as a sequence, or by name."""
    given = args[1:] if len(args) > 1 else (kwargs[name],)
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], list | tuple) else tuple(given)


def _behind(x: Series, dim: int) -> int:
    """A dimension of the series as one of its coefficients."""
    return dim % (x.c.ndim - 1) + 1


@rule("view", "reshape")
def reshape(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """A user's tensor was contiguous; its coefficients need not be, so `view` must be free to copy."""
    if (len(args) > 1 and isinstance(args[1], torch.dtype)) or "dtype" in kwargs:
        return viewing(func, args, kwargs)
    x = args[0]
    return x.view_of(x.c.reshape(x.m, *_sizes(args, kwargs, "shape" if "shape" in kwargs else "size")))


@rule("transpose", "swapaxes", "swapdims")
def transpose(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x, a, b = args[0], argument(args, kwargs, 1, "dim0"), argument(args, kwargs, 2, "dim1")
    return x.view_of(x.c.transpose(_behind(x, a), _behind(x, b)))


@rule("permute")
def permute(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x = args[0]
    return x.view_of(x.c.permute(0, *(_behind(x, d) for d in _sizes(args, kwargs, "dims"))))


@rule("unsqueeze")
def unsqueeze(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x, dim = args[0], argument(args, kwargs, 1, "dim")
    return x.view_of(x.c.unsqueeze(dim if dim < 0 else dim + 1))


@rule("split", "chunk")
def split(func: Callable[..., Any], args: tuple, kwargs: dict) -> tuple[Series, ...]:
    x, by = args[0], args[1] if len(args) > 1 else next(v for k, v in kwargs.items() if k != "dim")
    parts = func(x.c, by, _behind(x, argument(args, kwargs, 2, "dim", 0)))
    return tuple(x.view_of(part) for part in parts)


@rule("contiguous")
def contiguous(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """To the model a series is contiguous; how it is laid out is up to its rules."""
    return args[0].view_of(args[0].c)


@rule("flatten")
def flatten(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x = args[0] if args else kwargs["input"]
    start, end = argument(args, kwargs, 1, "start_dim", 0), argument(args, kwargs, 2, "end_dim", -1)
    return x.view_of(x.c.flatten(_behind(x, start), _behind(x, end)))


POOLS = {f"{kind}_pool{dims}d": dims for kind in ("avg", "adaptive_avg") for dims in (1, 2, 3)}


@rule(*POOLS)
def average_pool(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """Orders folded into the batch, as for convolutions."""
    x = args[0] if args else kwargs["input"]
    dims = POOLS[func.__name__]
    rest = {k: v for k, v in kwargs.items() if k != "input"}
    if x.c.ndim == dims + 2:  # an unbatched image: the orders are its batch
        return x.like(func(x.c, *args[1:], **rest))
    out = func(x.c.flatten(0, 1), *args[1:], **rest)
    return x.like(out.unflatten(0, x.c.shape[:2]))


@rule("interpolate", "upsample")
def interpolate(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """Orders folded into the batch."""
    x, rest = args[0] if args else kwargs["input"], {k: v for k, v in kwargs.items() if k != "input"}
    return x.like(func(x.c.flatten(0, 1), *args[1:], **rest).unflatten(0, x.c.shape[:2]))


@rule("__reversed__")
def reversed_(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    return args[0].flip(0)


@rule("__getitem__")
def getitem(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x, index = args
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(p, Tensor | list) for p in parts):
        picked = sum(isinstance(p, Tensor | list) for p in parts)
        return linear(func, args, kwargs) if picked > 1 else x.like(x.c[(slice(None), *parts)])
    return x.view_of(x.c[(slice(None), *parts)])


@rule("__setitem__")
def setitem(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """x[index] = value; returned for a plain x too, whose place the caller lets the series take."""
    x, index, value = args
    parts = index if isinstance(index, tuple) else (index,)
    owner = x if isinstance(x, Series) else value
    target = coefficients(x, owner)
    source = coefficients(value, owner)
    m = max(len(target), len(source))
    target, source = pad(target, m).clone(), pad(source, m)
    for k in range(m):
        target[(k, *parts)] = source[k]
    return overwrite(x, owner.like(target))


@rule("copy_")
def copy_(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    target, source = args[:2]
    like = target if isinstance(target, Series) else source
    c = coefficients(source, like)
    return overwrite(target, like.like(c.expand(len(c), *target.shape).to(target.dtype)))


def coefficients(x: Any, like: Series) -> Tensor:
    """Coefficients of a series, of a plain tensor or of a number (order 0 only)."""
    if isinstance(x, Series):
        return x.c
    if isinstance(x, Tensor):
        return x.unsqueeze(0)
    return torch.as_tensor(x, dtype=like.c.dtype, device=like.c.device).unsqueeze(0)


@rule("add")
def add(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    a, b = pair(args, kwargs)
    like = a if isinstance(a, Series) else b
    if isinstance(a, Series) and not isinstance(b, Tensor) and a.c.is_floating_point():
        c = a.own_memory()
        c = a.c.clone() if c is None else c
        c[0].add_(kwargs.get("alpha", 1) * b)
        return a.like(c)
    alpha = kwargs.get("alpha", 1)
    for x, other in ((a, b), (b, a)) if alpha == 1 else ((a, b),):
        own = add_into(x, coefficients(other, like), alpha) if isinstance(x, Series) else None
        if own is not None:
            return like.like(own)
    return like.like(add_coeffs(coefficients(a, like), coefficients(b, like), alpha))


def add_into(x: Series, c: Tensor, alpha: float) -> Tensor | None:
    """The coefficients of x + alpha·c in the memory of x, where they may and do fit there."""
    if not x.free or x.c.dtype != c.dtype or x.m < len(c) or c.ndim > x.c.ndim:
        return None
    c = align(c, x.c.ndim - 1)
    if torch.broadcast_shapes(x.c.shape[1:], c.shape[1:]) != x.c.shape[1:]:
        return None
    own = x.own_memory(c)
    if own is not None:
        own[: len(c)].add_(c, alpha=alpha)
    return own


@rule("sub", "subtract")
def sub(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    a, b = pair(args, kwargs)
    like = a if isinstance(a, Series) else b
    return like.like(add_coeffs(coefficients(a, like), coefficients(b, like), -kwargs.get("alpha", 1)))


@rule("rsub", "__rsub__")
def rsub(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    return sub(func, (args[1], args[0]), kwargs)


@rule("where")
def where(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """A choice by a plain mask (comparisons of series give one: they are locally constant)."""
    if func is torch.Tensor.where:
        a, mask, b = bound("input condition other", func, args, kwargs)
    else:
        mask, a, b = bound("condition input other", func, args, kwargs)
    if isinstance(mask, Series):
        raise MissingRuleError("torch.where on a condition that is itself a series: compare it first, as in x != 0")
    like = a if isinstance(a, Series) else b
    ca, cb = coefficients(a, like), coefficients(b, like)
    m, ndim = max(len(ca), len(cb)), max(ca.ndim, cb.ndim, mask.ndim + 1) - 1
    return like.like(torch.where(mask, align(pad(ca, m), ndim), align(pad(cb, m), ndim)))


@rule("masked_fill")
def masked_fill(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x, mask, value = bound("input mask value", func, args, kwargs)
    return where(torch.where, (mask, value, x), {})


@rule("pad", "constant_pad_nd")
def padding(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    if func is torch.constant_pad_nd:
        x, widths, value = bound("input pad value", func, args, kwargs)
        mode = "constant"
    else:
        x, widths, mode, value = bound("input pad mode value", func, args, kwargs, mode="constant")
    if mode != "constant":
        return linear(func, (x, widths), {"mode": mode})
    out = F.pad(x.c, tuple(widths))
    if value:
        out[0] = F.pad(x.c[0], tuple(widths), value=value)
    return x.like(out)


@rule("linear")
def dense(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x, weight = args[:2] if len(args) > 1 else (args[0] if args else kwargs["input"], kwargs["weight"])
    bias = argument(args, kwargs, 2, "bias")
    if not isinstance(x, Series) or isinstance(weight, Series):
        from .products import matmul

        out = matmul(torch.matmul, (x, weight.transpose(-2, -1)), {})
        return out if bias is None else add(torch.add, (out, bias), {})
    return x.like(with_bias(F.linear(x.c, weight), bias))


def with_bias(c: Tensor, bias: Tensor | None) -> Tensor:
    """Add a bias to order 0."""
    if bias is not None:
        c[0].add_(bias)
    return c


def joined_with_bias(x: Series, block: Tensor, bias: Tensor | None) -> Series:
    """Add a bias to the real value and to order 0 of a block that holds both."""
    if bias is not None:
        block[:2].add_(bias)
    return Series.joined(block, x.space)


def convolution(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """Orders folded into the batch: one larger convolution, in the layout the processor likes."""
    x, weight = args[0] if args else kwargs["input"], args[1] if len(args) > 1 else kwargs["weight"]
    bias = argument(args, kwargs, 2, "bias")
    rest = {k: v for k, v in kwargs.items() if k not in ("bias", "input", "weight")} if kwargs else kwargs
    if not isinstance(x, Series):
        raise ModeError(f"{func.__name__} with a weight that depends on λ is not covered: only its input may")
    dims = weight.ndim - 2
    c = x.c if x.joint is None else x.joint
    batched = c.ndim == dims + 3
    folded = c.flatten(0, 1) if batched else c
    if dims == 2 and c.device.type == "cpu" and c.dtype == torch.float32 and folded.shape[0] > 1:
        folded = folded.contiguous(memory_format=torch.channels_last)
        weight = weight.contiguous(memory_format=torch.channels_last)  # else it is reordered at a greater cost
    out = func(folded, weight, None, *args[3:], **rest)
    out = out.view(*c.shape[:2], *out.shape[1:]) if batched else out
    bias = None if bias is None else bias.view(-1, *(1,) * dims)
    if x.joint is not None:
        return joined_with_bias(x, out, bias)
    return x.like(with_bias(out, bias))


rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")(convolution)


@rule("addmm")
def addmm(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """beta·bias + alpha·(x @ w), GPT-2's Conv1D."""
    from .products import matmul

    bias, x, w = args[:3]
    out = matmul(torch.matmul, (x, w), {})
    alpha, beta = kwargs.get("alpha", 1), kwargs.get("beta", 1)
    out = out if alpha == 1 else out.like(out.c * alpha)
    if isinstance(bias, Series):
        return add(torch.add, (out, bias), {"alpha": beta})
    return out.like(with_bias(out.c, bias if beta == 1 else beta * bias))


@rule("feature_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
def dropout(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x = args[0] if args else kwargs["input"]
    p, training = argument(args, kwargs, 1, "p", 0.5), argument(args, kwargs, 2, "training", kwargs.get("train", True))
    if training and p:
        raise ModeError(f"dropout with p={p} in train mode: a series needs one fixed function; call model.eval() first")
    return x
