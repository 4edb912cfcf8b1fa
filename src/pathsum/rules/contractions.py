"""Products summed over axes: einsum, and those that matrix products and views make up."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..coefficients import add_coeffs
from ..series import Series
from . import bound, rule
from .products import freeze_one


@rule("mv")
def mv(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    a, b = bound("input vec", func, args, kwargs)
    return a @ b


@rule("dot", "vdot", "vecdot")
def dot(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Σ a·b over one axis; all but `dot` conjugate the first."""
    if func.__name__ in ("dot", "vdot"):
        (a, b), dim = bound("input tensor" if "tensor" in kwargs else "input other", func, args, kwargs), -1
    else:
        a, b, dim = bound("x y dim", func, args, kwargs, dim=-1)
    return ((a if func.__name__ == "dot" or not a.is_complex() else a.conj()) * b).sum(dim)


@rule("outer", "ger")
def outer(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    a, b = bound("input vec2", func, args, kwargs)
    return a.unsqueeze(-1) * b.unsqueeze(0)


@rule("inner")
def inner(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    a, b = bound("input other", func, args, kwargs)
    return a * b if 0 in (a.ndim, b.ndim) else torch.tensordot(a, b, dims=([-1], [-1]))


@rule("tensordot")
def tensordot(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """The axes that are summed last in a and first in b, all flattened: one matrix product."""
    a, b, dims = bound("a b dims", func, args, kwargs, dims=2)
    if isinstance(dims, int):
        summed_a, summed_b = list(range(a.ndim - dims, a.ndim)), list(range(dims))
    else:
        summed_a, summed_b = (
            [d % x.ndim for d in (s if isinstance(s, list | tuple) else [s])] for x, s in zip((a, b), dims, strict=True)
        )
    kept_a = [d for d in range(a.ndim) if d not in summed_a]
    kept_b = [d for d in range(b.ndim) if d not in summed_b]
    shape = [a.shape[d] for d in kept_a] + [b.shape[d] for d in kept_b]
    size = 1
    for d in summed_a:
        size *= a.shape[d]
    left = a.permute(*kept_a, *summed_a).reshape(-1, size)
    return (left @ b.permute(*summed_b, *kept_b).reshape(size, -1)).reshape(*shape)


@rule("kron")
def kron(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """All products of two entries, block by block."""
    a, b = bound("input other", func, args, kwargs)
    ndim = max(a.ndim, b.ndim)
    if not ndim:
        return a * b
    sizes_a, sizes_b = ((1,) * (ndim - x.ndim) + tuple(x.shape) for x in (a, b))
    wide = a.reshape(*(s for size in sizes_a for s in (size, 1)))
    product = wide * b.reshape(*(s for size in sizes_b for s in (1, size)))
    return product.reshape(*(i * j for i, j in zip(sizes_a, sizes_b, strict=True)))


@rule("chain_matmul", "multi_dot")
def chain(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    matrices = args[0] if isinstance(args[0], list | tuple) else args
    return reduce(torch.matmul, matrices)


@rule("baddbmm", "addbmm", "addmv", "addr")
def add_product(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """beta·x + alpha·(a @ b): batched, batched and summed, with a vector, of two vectors."""
    kind = func.__name__
    second, third = {"addmv": ("mat", "vec"), "addr": ("vec1", "vec2")}.get(kind, ("batch1", "batch2"))
    names = f"input {second} {third} beta alpha"
    x, a, b, beta, alpha = bound(names, func, args, kwargs, beta=1, alpha=1)
    product = torch.outer(a, b) if kind == "addr" else a @ b
    product = product.sum(0) if kind == "addbmm" else product
    product = product if alpha == 1 else alpha * product
    return product if beta == 0 else product + (x if beta == 1 else beta * x)


@rule("addcdiv")
def addcdiv(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    x, a, b, value = bound("input tensor1 tensor2 value", func, args, kwargs, value=1)
    return x + value * (a / b)


@rule("bilinear")
def bilinear(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """out_o = Σ_ij a_i W_oij b_j + bias_o."""
    a, b, weight, bias = bound("input1 input2 weight bias", func, args, kwargs)
    half = F.linear(a, weight.permute(0, 2, 1).flatten(0, 1))  # Σ_i a_i W_oij, (…, o·j)
    out = (half.unflatten(-1, (weight.shape[0], weight.shape[2])) * b.unsqueeze(-2)).sum(-1)
    return out if bias is None else out + bias


@rule("cross")
def cross(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """a × b along an axis of size 3."""
    a, b, dim = bound("input other dim", func, args, kwargs)
    if dim is None:
        dim = -1 if func is torch.linalg.cross else next(d for d, size in enumerate(a.shape) if size == 3)

    def turned(x: Tensor, by: int) -> Tensor:
        return torch.roll(x, by, dim)

    return turned(a, -1) * turned(b, -2) - turned(a, -2) * turned(b, -1)


@rule("einsum")
def einsum(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """An einsum with any number of series factors: Σ_j t^j of that with the j-th coefficient of one of them.

    Gated: of all but one factor the values are frozen.
    """
    equation = args[0]
    operands = list(args[1]) if len(args) == 2 and isinstance(args[1], list | tuple) else list(args[1:])
    at = [i for i, x in enumerate(operands) if isinstance(x, Series)]
    space = min((operands[i].space for i in at), key=lambda s: s.slots)
    while space.gated and len(at) > 1:
        operands[at[0]], operands[at[1]] = freeze_one(operands[at[0]], operands[at[1]])
        at = [i for i in at if isinstance(operands[i], Series)]
    if len(at) == 1:
        return operands[at[0]].like(over_orders(equation, operands, at[0]))
    shortest = min(at, key=lambda i: operands[i].m)
    out: Tensor | None = None
    for j, cj in enumerate(operands[shortest].c):
        rest = [x.like(x.c[: space.slots - j]) if isinstance(x, Series) else x for x in operands]
        part = einsum(func, (equation, [*rest[:shortest], cj, *rest[shortest + 1 :]]), {}).c[: space.slots - j]
        part = torch.cat([part.new_zeros(j, *part.shape[1:]), part])
        out = part if out is None else add_coeffs(out, part)
    assert out is not None
    return operands[shortest].like(out)


def over_orders(equation: str, operands: list[Any], at: int) -> Tensor:
    """The einsum of plain factors and, at one place, of coefficients: a letter more, for the orders."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    if not arrow:  # implied: the letters that occur once, in alphabetical order
        output = "..." * ("..." in inputs) + "".join(sorted(c for c in inputs if c.isalpha() and inputs.count(c) == 1))
    letter = next(c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" if c not in equation)
    factors = inputs.split(",")
    factors[at] = letter + factors[at]
    return torch.einsum(
        f"{','.join(factors)}->{letter}{output}", *(x.c if isinstance(x, Series) else x for x in operands)
    )
