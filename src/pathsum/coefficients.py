"""Arithmetic of coefficients: tensors (m, *shape) that hold the orders 0..m−1 of truncated power series."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

LARGE = 1 << 15  # numbers in a pair of coefficients from which each is multiplied on its own


@dataclass(frozen=True)
class Space:
    """Which series are kept: powers 0..order; with `overflow` the last slot sums every higher power too.

    With `carry` each series has beside its coefficients the value of the same tensor at the λ in force, `.actual`, so
    that one run gives orders and output: convolutions take it along as one more sample. `recompute` names what gated
    semantics does not freeze but computes from the paths so far: "norm", "attention" (`rules/recompute.py`). With
    `still` no gradient runs through what gated semantics freezes, so that derivatives are of the frozen network.
    """

    order: int
    gated: bool = False
    overflow: bool = False
    carry: bool = False
    recompute: frozenset[str] = frozenset()
    still: bool = False

    @property
    def slots(self) -> int:
        return self.order + 1

    def upto(self, slots: int) -> Space:
        """This space with so many slots."""
        return replace(self, order=slots - 1)


def needs_grad(*tensors: Any) -> bool:
    return any(isinstance(t, Tensor) and t.requires_grad for t in tensors)


def pad(c: Tensor, m: int) -> Tensor:
    """Coefficients (m', …) with zeros up to m orders."""
    if len(c) >= m:
        return c
    return torch.cat([c, c.new_zeros(m - len(c), *c.shape[1:])])


def align(c: Tensor, ndim: int) -> Tensor:
    """Put singleton axes behind the order axis, so that coefficients of `ndim` dimensions broadcast."""
    gap = ndim - (c.ndim - 1)
    return c if gap <= 0 else c.reshape(len(c), *(1,) * gap, *c.shape[1:])


def add_coeffs(a: Tensor, b: Tensor, alpha: float | Tensor = 1) -> Tensor:
    """a + alpha·b for coefficients of different lengths and broadcastable shapes."""
    ndim = max(a.ndim, b.ndim) - 1
    a, b = align(a, ndim), align(b, ndim)
    if len(a) == len(b):
        return a + alpha * b if isinstance(alpha, Tensor) else torch.add(a, b, alpha=alpha)
    shape = torch.broadcast_shapes(a.shape[1:], b.shape[1:])
    dtype = torch.promote_types(a.dtype, b.dtype)
    long, short = (a, b) if len(a) > len(b) else (b, a)
    out = long.to(dtype).expand(len(long), *shape).clone(memory_format=torch.preserve_format)
    if long is b and not (isinstance(alpha, int | float) and alpha == 1):
        out = out * alpha
    head = out[: len(short)]
    if short is b:
        head.add_(b * alpha if isinstance(alpha, Tensor) else b, alpha=1 if isinstance(alpha, Tensor) else alpha)
    else:
        head.add_(a)
    return out


def cauchy(a: Tensor, b: Tensor, space: Space, product: Callable[[Tensor, Tensor], Tensor] = torch.mul) -> Tensor:
    """Coefficients of a bilinear product, out_k = Σ_{i+j=k} a_i b_j, truncated to the space (Taylor).

    `product` is to broadcast over the order axis, as mul and matmul do.
    """
    m = min(a.shape[0] + b.shape[0] - 1, space.slots)
    plain = not (torch.is_grad_enabled() and needs_grad(a, b))
    if product is torch.mul and plain and a[0].numel() + b[0].numel() >= LARGE:
        return _square_large(a, m) if a is b else _multiply(a, b, m)
    if product is torch.matmul and min(len(a), len(b)) > 1 and min(a.ndim, b.ndim) > 2:
        return _matmul(a, b, m)
    if b.shape[0] < a.shape[0]:
        return cauchy(b, a, space, lambda x, y: product(y, x)) if product is not torch.mul else cauchy(b, a, space)
    if product is torch.mul and a is b:
        return _square(a, m)
    first = product(a[:1], b[:m])
    out = first if first.shape[0] == m else pad(first, m)
    for i in range(1, min(a.shape[0], m)):
        other = b[: m - i]
        target = out[i : i + other.shape[0]]
        if product is torch.mul:
            target.addcmul_(a[i : i + 1], other)
        else:
            target.add_(product(a[i : i + 1], other))
    return out


def _multiply(a: Tensor, b: Tensor, m: int) -> Tensor:
    """The elementwise product of large coefficients, each finished while it is in the processor's cache."""
    if a.shape[1:] == b.shape[1:] and a.dtype == b.dtype:
        out = empty_for(m, a, b)
    else:
        shape = torch.broadcast_shapes(a.shape[1:], b.shape[1:])
        out = torch.empty((m, *shape), dtype=torch.promote_types(a.dtype, b.dtype), device=a.device)
    left, right = a.unbind(0), b.unbind(0)
    for k, out_k in enumerate(out.unbind(0)):
        low, high = max(0, k - len(right) + 1), min(k, len(left) - 1)
        torch.mul(left[low], right[k - low], out=out_k)
        for i in range(low + 1, high + 1):
            out_k.addcmul_(left[i], right[k - i])
    return out


def fits(a: Tensor, b: Tensor, space: Space) -> bool:
    """Whether a·b has the shape and type of a."""
    m = min(a.shape[0] + b.shape[0] - 1, space.slots)
    same = a.dtype == b.dtype and a.shape[0] == m
    return same and torch.broadcast_shapes(a.shape[1:], b.shape[1:]) == a.shape[1:]


def multiply_into(a: Tensor, b: Tensor) -> Tensor:
    """`cauchy(a, b)` in the memory of a, which `fits`, from the highest order down."""
    m = a.shape[0]
    left, right = a.unbind(0), b.unbind(0)
    for k in range(m - 1, -1, -1):
        left[k].mul_(right[0])
        for i in range(max(0, k - len(right) + 1), k):
            left[k].addcmul_(left[i], right[k - i])
    return a


def _square_large(a: Tensor, m: int) -> Tensor:
    """As `_multiply`, each mixed product once, doubled."""
    out, left = empty_for(m, a, a), a.unbind(0)
    for k, out_k in enumerate(out.unbind(0)):
        low, half = max(0, k - len(left) + 1), k // 2
        for i in range(low, (k + 1) // 2):
            if i == low:
                torch.mul(left[i], left[k - i], out=out_k)
            else:
                out_k.addcmul_(left[i], left[k - i])
        if k % 2:
            out_k.mul_(2)
        elif low == half:
            torch.mul(left[half], left[half], out=out_k)
        else:
            out_k.mul_(2).addcmul_(left[half], left[half])
    return out


def _matmul(a: Tensor, b: Tensor, m: int) -> Tensor:
    """Σ_{i+j=k} a_i b_j as one product a k, of the a_i side by side with the b_{k−i} one below the other."""
    ndim = max(a.ndim, b.ndim) - 1
    a, b = align(a, ndim), align(b, ndim)
    inner = b.shape[-2]
    wide = torch.cat(a.unbind(0), -1)
    tall = torch.cat(b.unbind(0)[::-1], -2)
    out = []
    for k in range(m):
        low, high = max(0, k - len(b) + 1), min(k, len(a) - 1)
        top = len(b) - 1 - (k - low)
        out.append(
            wide[..., low * inner : (high + 1) * inner] @ tall[..., top * inner : (top + high - low + 1) * inner, :]
        )
    return torch.stack(out)


def _square(a: Tensor, m: int) -> Tensor:
    """[a²]_k for k < m: each mixed product once, doubled."""
    out = 2 * a[:1] * a[:m]
    out[0].mul_(0.5)
    out = pad(out, m)
    for i in range(1, min(a.shape[0], (m + 1) // 2)):
        out[2 * i].addcmul_(a[i], a[i])
        other = a[i + 1 : m - i]
        if other.shape[0]:
            out[2 * i + 1 : 2 * i + 1 + other.shape[0]].addcmul_(a[i : i + 1], other, value=2)
    return out


def shift(c: Tensor, space: Space) -> Tensor:
    """t·c: every coefficient one order up; in a space with overflow the last slot keeps what would fall off."""
    m = min(len(c) + 1, space.slots)
    out = torch.cat([torch.zeros_like(c[:1]), c[: m - 1]])
    if space.overflow and len(c) == space.slots:
        out[-1].add_(c[-1])
    return out


def add_shifted(
    skip: Tensor,
    branch: Tensor,
    weight: float | Tensor,
    space: Space,
    *,
    overwrite: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """skip + weight·t·branch, the residual join: c_k ← c_k + w·[F(c)]_{k−1}. One pass where no gradient is asked.

    `overwrite` lets the result take the skip's memory; `out` is memory for it, of the right length.
    """
    m = min(max(skip.shape[0], branch.shape[0] + 1), space.slots)
    grad = torch.is_grad_enabled() and needs_grad(skip, branch, weight)
    spills = space.overflow and branch.shape[0] == space.slots
    if grad or isinstance(weight, Tensor) or skip.dtype != branch.dtype or skip.shape[1:] != branch.shape[1:]:
        return add_coeffs(skip, shift(branch, space), weight)
    if overwrite and skip.shape[0] == m:
        reached = branch[: m - 1]
        skip[1 : reached.shape[0] + 1].add_(reached, alpha=weight)
        if spills:
            skip[-1].add_(branch[-1], alpha=weight)
        return skip
    out = empty_for(m, skip, branch) if out is None else out
    out[0] = skip[0]
    both = max(0, min(skip.shape[0], branch.shape[0] + 1, m) - 1)  # orders 1..both have a skip and a branch part
    torch.add(skip[1 : both + 1], branch[:both], alpha=weight, out=out[1 : both + 1])
    if skip.shape[0] > both + 1:
        out[both + 1 :] = skip[both + 1 : m]
    elif m > both + 1:
        torch.mul(branch[both : m - 1], weight, out=out[both + 1 :])
    if spills:
        out[-1].add_(branch[-1], alpha=weight)
    return out


def empty_for(m: int, skip: Tensor, branch: Tensor) -> Tensor:
    """Uninitialized coefficients, channels-last where one of the two is: what convolutions on it like."""
    shape = (m, *skip.shape[1:])
    if skip.ndim == 5 and (_channels_last(skip) or _channels_last(branch)):
        flat = torch.empty(
            (m * shape[1], *shape[2:]), dtype=skip.dtype, device=skip.device, memory_format=torch.channels_last
        )
        return flat.unflatten(0, shape[:2])
    return torch.empty(shape, dtype=skip.dtype, device=skip.device)


def _channels_last(c: Tensor) -> bool:
    first = c[0]
    return first.is_contiguous(memory_format=torch.channels_last) and not first.is_contiguous()


def has_zero(sign: Tensor) -> bool:
    """Whether a tensor of signs holds a 0. Floats are several times faster here than masks."""
    wide = sign.dtype in (torch.float32, torch.float64)
    if wide and 0 < sign.numel() < 1 << 20:  # up to there float32 can tell the count of ones by their norm
        return float(torch.linalg.vector_norm(sign)) ** 2 < sign.numel() - 0.5
    return sign.numel() > 0 and float(sign.abs().amin()) == 0


def lex_sign(c: Tensor) -> Tensor:
    """Sign of the first nonzero coefficient: the sign of the series for t → 0⁺."""
    c = c.detach()
    sign = c[0].sign()
    for k in range(1, c.shape[0]):
        if not has_zero(sign):
            break
        sign = torch.where(sign == 0, c[k].sign(), sign)
    return sign
