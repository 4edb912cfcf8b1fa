"""Losses, written out: what a network's terms add to its loss can then be expanded too."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MissingRuleError
from . import bound, rule
from .statistics import p_norm

LEGACY = "size_average reduce reduction"


def reduced(loss: Any, options: list[Any], weight: Any = None) -> Any:
    """The loss of all samples by `reduction`; a mean over weights where there are any."""
    size_average, reduce, reduction = options
    if size_average is not None or reduce is not None:
        raise MissingRuleError(
            "a loss with size_average= or reduce= on a series: write reduction='mean', 'sum' or 'none'"
        )
    if reduction == "none":
        return loss
    total = loss.sum()
    if reduction == "sum":
        return total
    return total / (loss.numel() if weight is None else weight.sum())


@rule("nll_loss")
def nll_loss(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """−w_t·a_t over classes in dimension 1, samples whose target is `ignore_index` left out."""
    names = "input target weight size_average ignore_index reduce reduction"
    x, target, weight, average, ignored, reduce, how = bound(
        names, func, args, kwargs, ignore_index=-100, reduction="mean"
    )
    losses, weights = by_class(x, target, weight, ignored)
    return reduced(losses, [average, reduce, how], weights)


def by_class(x: Any, target: Tensor, weight: Tensor | None, ignored: int) -> tuple[Any, Tensor]:
    """−w_t·a_t and w_t of each sample."""
    dim = 1 if x.ndim > 1 else 0
    left_out = target == ignored
    at = target.masked_fill(left_out, 0)
    weights = torch.ones(target.shape, dtype=x.dtype, device=target.device) if weight is None else weight[at]
    weights = weights.masked_fill(left_out, 0.0)
    return -x.gather(dim, at.unsqueeze(dim)).squeeze(dim) * weights, weights


@rule("cross_entropy")
def cross_entropy(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """−Σ_c t_c·w_c·log softmax(a)_c, for targets that are classes or probabilities."""
    names = "input target weight size_average ignore_index reduce reduction label_smoothing"
    x, target, weight, average, ignored, reduce, how, smoothing = bound(
        names, func, args, kwargs, ignore_index=-100, reduction="mean", label_smoothing=0.0
    )
    dim = 1 if x.ndim > 1 else 0
    logs, classes, options = F.log_softmax(x, dim=dim), x.shape[dim], [average, reduce, how]
    per_class = 1.0 if weight is None else weight.view(-1, *(1,) * (x.ndim - dim - 1))
    if target.is_floating_point():
        target = target * (1 - smoothing) + smoothing / classes
        losses = -(logs * (target * per_class)).sum(dim)
        return reduced(losses, options)
    losses, weights = by_class(logs, target, weight, ignored)
    if smoothing:
        even = -(logs * per_class).sum(dim).masked_fill(target == ignored, 0.0)
        losses = (1 - smoothing) * losses + smoothing / classes * even
    return reduced(losses, options, weights)


@rule("linear_cross_entropy")
def linear_cross_entropy(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    names = "input linear_weight target linear_bias weight reduction ignore_index label_smoothing options"
    x, matrix, target, bias, weight, how, ignored, smoothing, _ = bound(names, func, args, kwargs, reduction="mean")
    if matrix.ndim != 2:
        raise MissingRuleError("linear_cross_entropy with a weight of over 2 dimensions on a series: write it out")
    return F.cross_entropy(
        F.linear(x, matrix, bias),
        target,
        weight,
        ignore_index=-100 if ignored is None else ignored,
        reduction=how,
        label_smoothing=smoothing or 0.0,
    )


@rule("mse_loss", "l1_loss")
def power_loss(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """|a − t|^p, p = 2 or 1."""
    a, t, *options, weight = bound(f"input target {LEGACY} weight", func, args, kwargs, reduction="mean")
    loss = (a - t) ** 2 if func.__name__ == "mse_loss" else (a - t).abs()
    return reduced(loss if weight is None else loss * weight, options, weight)


@rule("smooth_l1_loss", "huber_loss")
def huber_loss(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """½d² within δ, δ(|d| − ½δ) beyond, d = a − t; smooth_l1: the same divided by δ = β."""
    weight = None
    if func.__name__ == "huber_loss":
        a, t, how, width, weight = bound(
            "input target reduction delta weight", func, args, kwargs, reduction="mean", delta=1.0
        )
        options, scale = [None, None, how], 1.0
    else:
        a, t, *options, width = bound(f"input target {LEGACY} beta", func, args, kwargs, reduction="mean", beta=1.0)
        scale = 1 / width if width else 1.0
    d = a - t
    far = d.abs()
    if not width:
        return reduced(far, options)
    loss = torch.where(far < width, d * d * (0.5 * scale), (far - 0.5 * width) * (width * scale))
    return reduced(loss if weight is None else loss * weight, options)


@rule("binary_cross_entropy")
def binary_cross_entropy(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """−t·log a − (1 − t)·log(1 − a), each logarithm at least −100."""
    a, t, weight, *options = bound(f"input target weight {LEGACY}", func, args, kwargs, reduction="mean")
    loss = -(t * a.log().clamp_min(-100.0) + (1 - t) * torch.log1p(-a).clamp_min(-100.0))
    return reduced(loss if weight is None else loss * weight, options)


@rule("binary_cross_entropy_with_logits")
def binary_cross_entropy_with_logits(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """(1 − t)·a − (1 + (p − 1)·t)·log σ(a)."""
    names = f"input target weight {LEGACY} pos_weight"
    a, t, weight, *options, positive = bound(names, func, args, kwargs, reduction="mean")
    factor = 1.0 if positive is None else 1 + (positive - 1) * t
    loss = (1 - t) * a - factor * F.logsigmoid(a)
    return reduced(loss if weight is None else loss * weight, options)


@rule("kl_div")
def kl_div(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """t·(log t − a), where a is a logarithm, and t too with `log_target`."""
    a, t, *options, logarithm = bound(f"input target {LEGACY} log_target", func, args, kwargs, reduction="mean")
    loss = t.exp() * (t - a) if logarithm else torch.xlogy(t, t) - t * a
    if options[-1] == "batchmean":
        return reduced(loss, [*options[:2], "sum"]) / a.shape[0]
    return reduced(loss, options)


@rule("poisson_nll_loss")
def poisson_nll_loss(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """e^a − t·a, or a − t·log(a + eps); with `full`, Stirling's term of t."""
    a, t, log_input, full, average, eps, reduce, how = bound(
        "input target log_input full size_average eps reduce reduction",
        func,
        args,
        kwargs,
        log_input=True,
        eps=1e-8,
        reduction="mean",
    )
    loss = a.exp() - t * a if log_input else a - t * (a + eps).log()
    if full:
        loss = loss + torch.where(t > 1, t * t.log() - t + 0.5 * (2 * math.pi * t).log(), 0.0)
    return reduced(loss, [average, reduce, how])


@rule("gaussian_nll_loss")
def gaussian_nll_loss(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """½(log v + (a − t)²/v), v at least eps."""
    a, t, var, full, eps, how = bound(
        "input target var full eps reduction", func, args, kwargs, eps=1e-6, reduction="mean"
    )
    var = torch.as_tensor(var)
    var = (var.unsqueeze(-1) if var.ndim and tuple(a.shape[:-1]) == tuple(var.shape) else var).clamp_min(eps)
    loss = 0.5 * (var.log() + (a - t) ** 2 / var) + (0.5 * math.log(2 * math.pi) if full else 0.0)
    return reduced(loss, [None, None, how])


@rule("soft_margin_loss")
def soft_margin_loss(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """log(1 + e^(−t·a))."""
    a, t, *options = bound(f"input target {LEGACY}", func, args, kwargs, reduction="mean")
    return reduced(-F.logsigmoid(t * a), options)


@rule("hinge_embedding_loss")
def hinge_embedding_loss(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """a where t = 1, max(0, margin − a) where t = −1."""
    a, t, margin, *options = bound(f"input target margin {LEGACY}", func, args, kwargs, margin=1.0, reduction="mean")
    return reduced(torch.where(t == 1, a, (margin - a).clamp_min(0.0)), options)


@rule("margin_ranking_loss")
def margin_ranking_loss(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """max(0, margin − t·(a − b))."""
    names = f"input1 input2 target margin {LEGACY}"
    a, b, t, margin, *options = bound(names, func, args, kwargs, margin=0.0, reduction="mean")
    return reduced((margin - t * (a - b)).clamp_min(0.0), options)


@rule("cosine_embedding_loss")
def cosine_embedding_loss(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """1 − cos where t = 1, max(0, cos − margin) where t = −1."""
    names = f"input1 input2 target margin {LEGACY}"
    a, b, t, margin, *options = bound(names, func, args, kwargs, margin=0.0, reduction="mean")
    cos = (a * b).sum(-1) / (((a * a).sum(-1) + 1e-12) * ((b * b).sum(-1) + 1e-12)).sqrt()
    return reduced(torch.where(t == 1, 1 - cos, (cos - margin).clamp_min(0.0)), options)


@rule("triplet_margin_loss")
def triplet_margin_loss(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """max(0, ‖a − p‖ − ‖a − n‖ + margin)."""
    names = f"anchor positive negative margin p eps swap {LEGACY}"
    a, near, far, margin, p, eps, swap, *options = bound(
        names, func, args, kwargs, margin=1.0, p=2.0, eps=1e-6, reduction="mean"
    )

    def distance(x: Any, y: Any) -> Any:
        return p_norm(x - y + eps, p, (-1,), False)

    other = torch.minimum(distance(a, far), distance(near, far)) if swap else distance(a, far)
    return reduced((distance(a, near) - other + margin).clamp_min(0.0), options)
