"""Normalization. BatchNorm in eval mode is affine; others are decomposed: gated freezes σ, Taylor does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..coefficients import cauchy
from ..errors import ModeError
from ..series import Series
from . import argument, rule
from .elementwise import power
from .linear import joined_with_bias, with_bias


@rule("batch_norm")
def batch_norm(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training")
    if len(args) > 6 and func is torch.batch_norm:  # torch.batch_norm(input, weight, bias, mean, var, training, …)
        names = ("input", "weight", "bias", "running_mean", "running_var", "training")
    x, mean, var, weight, bias, training = (
        argument(args, kwargs, names.index(n), n)
        for n in ("input", "running_mean", "running_var", "weight", "bias", "training")
    )
    eps = argument(args, kwargs, 7, "eps", 1e-5)
    if training or mean is None or var is None:
        raise ModeError(
            "BatchNorm in train mode mixes the samples of a batch, so the network is no function of one input: "
            "call model.eval() first"
        )
    scale = torch.rsqrt(var + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = (-1, *(1,) * (x.c.ndim - 3))
    if x.joint is not None:
        block = x.joint.mul_(scale.view(shape)) if x.free else x.joint * scale.view(shape)
        return joined_with_bias(x, block, shift.view(shape))
    return x.like(with_bias(x.times(scale.view(shape)), shift.view(shape)))


def standardize(x: Series, c: Tensor, dims: tuple[int, ...], eps: float, *, center: bool = True) -> Tensor:
    """(c − mean)/√(var + eps) over `dims` of the coefficients."""
    if c.is_complex():
        raise NotImplementedError("norms are of real numbers")
    if center:
        c = c - c.mean(dims, keepdim=True)
    if x.space.gated:
        value = c.sum(0, keepdim=True)
        value = value.detach() if x.space.still else value
        return c * torch.rsqrt(value.square().mean(dims, keepdim=True) + eps)
    var = cauchy(c, c, x.space).mean(dims, keepdim=True)
    var[0].add_(eps)
    return cauchy(c, power(var, -0.5, x.space), x.space)


@rule("layer_norm")
def layer_norm(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x, shape = args[0] if args else kwargs["input"], argument(args, kwargs, 1, "normalized_shape")
    weight, bias = argument(args, kwargs, 2, "weight"), argument(args, kwargs, 3, "bias")
    dims = tuple(range(-len(shape), 0))
    c = standardize(x, x.c, dims, argument(args, kwargs, 4, "eps", 1e-5))
    return x.like(with_bias(c if weight is None else c * weight, bias))


@rule("rms_norm")
def rms_norm(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x, shape = args[0] if args else kwargs["input"], argument(args, kwargs, 1, "normalized_shape")
    weight, eps = argument(args, kwargs, 2, "weight"), argument(args, kwargs, 3, "eps")
    eps = torch.finfo(x.c.dtype).eps if eps is None else eps
    c = standardize(x, x.c, tuple(range(-len(shape), 0)), eps, center=False)
    return x.like(c if weight is None else c * weight)


@rule("group_norm")
def group_norm(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    x, groups = args[0] if args else kwargs["input"], argument(args, kwargs, 1, "num_groups")
    weight, bias = argument(args, kwargs, 2, "weight"), argument(args, kwargs, 3, "bias")
    m, batch, channels, *rest = x.c.shape
    grouped = x.c.reshape(m, batch, groups, channels // groups, *rest)
    dims = tuple(range(3, grouped.ndim))
    c = standardize(x, grouped, dims, argument(args, kwargs, 4, "eps", 1e-5))
    return x.like(_affine(c.reshape(len(c), batch, channels, *rest), weight, bias))


@rule("instance_norm")
def instance_norm(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    names = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
    if func is torch.instance_norm:
        names = ("input", "weight", "bias", "running_mean", "running_var", "use_input_stats", "momentum", "eps")
    given = {n: argument(args, kwargs, i, n) for i, n in enumerate(names)}
    x, weight, bias, own, eps = (given[n] for n in ("input", "weight", "bias", "use_input_stats", "eps"))
    eps = 1e-5 if eps is None else eps
    if own is False:
        mean, var = given["running_mean"], given["running_var"]
        return batch_norm(torch.nn.functional.batch_norm, (x, mean, var, weight, bias, False, 0.1, eps), {})
    c = standardize(x, x.c, tuple(range(3, x.c.ndim)), eps)
    return x.like(_affine(c, weight, bias))


def _affine(c: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Per-channel weight and bias of coefficients (m, batch, channels, …)."""
    shape = (-1, *(1,) * (c.ndim - 3))
    c = c if weight is None else c * weight.view(shape)
    return with_bias(c, None if bias is None else bias.view(shape))
