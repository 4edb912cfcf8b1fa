"""Spreads and norms of vectors, and division by them: sums of squares, so that both semantics follow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import MissingRuleError
from ..series import name_of
from . import bound, rule


def dims_of(x: Any, dim: Any) -> tuple[int, ...]:
    """The dimensions meant: all for None."""
    return tuple(range(x.ndim)) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)


@rule("var", "std", "var_mean", "std_mean")
def spread(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Σ(a − mean)²/(N − correction) over `dim`, or its square root; with the mean, for the functions named so."""
    if len(args) == 2 and isinstance(args[1], bool):  # var(x, unbiased), of all entries
        return spread(func, args[:1], kwargs | {"unbiased": args[1]})
    x, dim, unbiased, keepdim, correction = bound("input dim unbiased keepdim correction", func, args, kwargs)
    if correction is None:
        correction = 1 if unbiased is None else int(unbiased)
    dims, keepdim = dims_of(x, dim), bool(keepdim)
    count = math.prod(x.shape[d] for d in dims)
    mean = x.mean(dims, keepdim=True)
    centered = x - mean
    out = square(centered).sum(dims, keepdim=keepdim) / (count - correction)
    out = out.sqrt() if "std" in func.__name__ else out
    return (out, mean if keepdim else x.mean(dims)) if "mean" in func.__name__ else out


@rule("norm", "vector_norm", "matrix_norm", "frobenius_norm")
def norm(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """(Σ |a|^p)^(1/p) over `dim`; of matrices, the Frobenius norm."""
    kwargs = {{"A": "input", "x": "input", "ord": "p"}.get(k, k): v for k, v in kwargs.items()}
    plain = "frobenius" not in func.__name__
    names = "input p dim keepdim out dtype" if plain else "input dim keepdim"
    values = dict(zip(names.split(), bound(names, func, args, kwargs), strict=True))
    x, p, dim, keepdim = values["input"], values.get("p"), values["dim"], bool(values["keepdim"])
    x = x if values.get("dtype") is None else x.to(values["dtype"])
    matrix = func.__name__ == "linalg_matrix_norm"
    dims = (-2, -1) if matrix and dim is None else dims_of(x, dim)
    if p in ("fro", None):
        return p_norm(x, 2, dims, keepdim)
    if not isinstance(p, int | float) or matrix or (func.__name__ == "linalg_norm" and len(dims) == 2):
        raise MissingRuleError(f"{name_of(func)} of order {p!r} on a series: of matrix norms only 'fro' is covered")
    return p_norm(x, p, dims, keepdim)


def square(x: Any) -> Any:
    """|x|²."""
    return x.real * x.real + x.imag * x.imag if x.is_complex() else x * x


def p_norm(x: Any, p: float, dims: tuple[int, ...], keepdim: bool) -> Any:
    if p == 2:
        return square(x).sum(dims, keepdim=keepdim).sqrt()
    if x.is_complex() or p != 4:
        x = x.abs()
    if abs(p) == math.inf:
        return x.amax(dims, keepdim=keepdim) if p > 0 else x.amin(dims, keepdim=keepdim)
    if p == 0:
        return (x != 0).sum(dims, keepdim=keepdim).to(x.dtype)
    if p == 1:
        return x.sum(dims, keepdim=keepdim)
    return (x**p).sum(dims, keepdim=keepdim) ** (1 / p)


@rule("dist")
def dist(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    a, b, p = bound("input other p", func, args, kwargs, p=2)
    return p_norm(a - b, p, dims_of(a - b, None), False)


@rule("normalize")
def normalize(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """a/max(‖a‖, eps)."""
    x, p, dim, eps = bound("input p dim eps", func, args, kwargs, p=2.0, dim=1, eps=1e-12)
    return x / p_norm(x, p, dims_of(x, dim), True).clamp_min(eps)


@rule("local_response_norm")
def local_response_norm(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """a/(k + α·mean of a² over `size` neighboring channels)^β."""
    x, size, alpha, beta, k = bound("input size alpha beta k", func, args, kwargs, alpha=1e-4, beta=0.75, k=1.0)
    square = (x * x).flatten(2).unsqueeze(1)  # (batch, 1, channels, places)
    around = F.avg_pool2d(F.pad(square, (0, 0, size // 2, (size - 1) // 2)), (size, 1), stride=1)
    return x / (around.squeeze(1).reshape(x.shape) * alpha + k) ** beta


@rule("cosine_similarity")
def cosine_similarity(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """Σ a·b/(max(‖a‖, eps)·max(‖b‖, eps)) over `dim`."""
    a, b, dim, eps = bound("x1 x2 dim eps", func, args, kwargs, dim=1, eps=1e-8)

    def unit(x: Any) -> Any:
        return x / (x * x).sum(dim, keepdim=True).clamp_min(eps * eps).sqrt()

    return (unit(a) * unit(b)).sum(dim)


@rule("pairwise_distance")
def pairwise_distance(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """‖a − b + eps‖_p."""
    a, b, p, eps, keepdim = bound("x1 x2 p eps keepdim", func, args, kwargs, p=2.0, eps=1e-6)
    return p_norm(a - b + eps, p, (-1,), bool(keepdim))


@rule("cdist")
def cdist(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """‖a_i − b_j‖_p, of points that differ (Taylor: a norm has no expansion at 0)."""
    a, b, p, _ = bound("x1 x2 p compute_mode", func, args, kwargs, p=2.0)
    return p_norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, (-1,), False)


@rule("pdist")
def pdist(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """‖a_i − a_j‖_p for i < j."""
    x, p = bound("input p", func, args, kwargs, p=2.0)
    i, j = torch.triu_indices(len(x), len(x), 1)
    return p_norm(x[i] - x[j], p, (-1,), False)
