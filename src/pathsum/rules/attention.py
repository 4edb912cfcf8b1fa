"""Softmax and attention. Gated: the pattern is frozen at its value; Taylor: softmax is decomposed, not frozen."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..coefficients import add_coeffs, cauchy
from ..errors import MissingRuleError, ModeError
from ..series import Series
from . import argument, rule
from .elementwise import exp, log, power
from .products import bilinear


def softmax_coeffs(x: Series, dim: int) -> Tensor:
    """exp(a − max a₀)/Σ exp(a − max a₀)."""
    c = x.c.clone()
    top = c[0].amax(dim, keepdim=True)
    c[0] -= torch.where(top.isfinite(), top, torch.zeros_like(top))
    dead = c[0] == -torch.inf  # masked scores: exp is 0 at every order
    if bool(dead.any()):
        c[0].masked_fill_(dead, 0.0)
        e = exp(c, x.space) * ~dead
    else:
        e = exp(c, x.space)
    total = e.sum(dim if dim < 0 else dim + 1, keepdim=True)
    return cauchy(e, power(total, -1.0, x.space), x.space)


def _cast(args: tuple, kwargs: dict) -> Any:
    """The input, in the precision that softmax was asked to compute in."""
    x = args[0] if args else kwargs["input"]
    dtype = kwargs.get("dtype", next((a for a in args[1:] if isinstance(a, torch.dtype)), None))
    return x if dtype is None else x.to(dtype)


@rule("softmax")
def softmax(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    x, dim = _cast(args, kwargs), argument(args, kwargs, 1, "dim")
    if x.space.gated:
        return torch.softmax(x.base(), dim)
    return x.like(softmax_coeffs(x, dim), gate=2)


@rule("log_softmax")
def log_softmax(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """a − log Σ exp(a); gated: the log-sum is frozen, a bias path of order 0."""
    x, dim = _cast(args, kwargs), argument(args, kwargs, 1, "dim")
    if x.space.gated:
        out = x.c.clone()
        out[0] -= x.base().logsumexp(dim, keepdim=True)
        return x.like(out)
    top = x.c[0].amax(dim, keepdim=True)
    c = x.c.clone()
    c[0] -= top
    total = exp(c, x.space).sum(dim if dim < 0 else dim + 1, keepdim=True)
    return x.like(add_coeffs(c, log(total, x.space), -1))


@rule("scaled_dot_product_attention")
def attention(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """softmax(q kᵀ·scale + mask) v, with grouped queries."""
    q, k, v = args[:3] if len(args) > 2 else (kwargs["query"], kwargs["key"], kwargs["value"])
    mask = argument(args, kwargs, 3, "attn_mask")
    if argument(args, kwargs, 4, "dropout_p", 0.0):
        raise ModeError("attention with dropout in train mode: call model.eval() first")
    if kwargs.get("enable_gqa") and k.shape[-3] != q.shape[-3]:
        repeats = q.shape[-3] // k.shape[-3]
        k, v = k.repeat_interleave(repeats, -3), v.repeat_interleave(repeats, -3)
    if argument(args, kwargs, 5, "is_causal", False):
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    pattern = attention_pattern(q, k, mask, kwargs.get("scale"))
    if isinstance(pattern, Series) or isinstance(v, Series):
        return bilinear(pattern, v, torch.matmul)
    return pattern @ v


def attention_pattern(q: Any, k: Any, mask: Tensor | None, scale: float | None) -> Any:
    """softmax(q kᵀ·scale + mask); gated: a plain tensor. A boolean mask says which places take part."""
    if isinstance(mask, Series):
        raise MissingRuleError("attention with a mask that depends on λ: add the mask to the scores and use softmax")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if any(isinstance(x, Series) and x.space.gated for x in (q, k)):
        q, k = (x.base() if isinstance(x, Series) else x for x in (q, k))
    scores: Any = torch.matmul(q, k.transpose(-2, -1)) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.like(softmax_coeffs(scores, -1)) if isinstance(scores, Series) else torch.softmax(scores, -1)


@rule("multi_head_attention_forward")
def multihead(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """`nn.MultiheadAttention`: its projections, attention head by head, and the output projection."""
    given = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs)
    given.apply_defaults()
    a = given.arguments
    if a["dropout_p"] and a["training"]:
        raise ModeError("nn.MultiheadAttention with dropout in train mode: call model.eval() first")
    for name in ("bias_k", "bias_v", "static_k", "static_v"):
        if a[name] is not None:
            raise MissingRuleError(f"nn.MultiheadAttention with {name} on a series: not covered; leave it out")
    if a["add_zero_attn"]:
        raise MissingRuleError("nn.MultiheadAttention with add_zero_attn on a series: not covered; leave it out")
    inputs = [a["query"], a["key"], a["value"]]
    batched = inputs[0].ndim == 3
    if a["use_separate_proj_weight"]:
        weights = [a["q_proj_weight"], a["k_proj_weight"], a["v_proj_weight"]]
    else:
        weights = a["in_proj_weight"].chunk(3)
    biases = [None] * 3 if a["in_proj_bias"] is None else a["in_proj_bias"].chunk(3)
    heads = a["num_heads"]
    q, k, v = (  # (batch, heads, length, head width)
        _heads(F.linear(x if batched else x.unsqueeze(1), w, b), heads)
        for x, w, b in zip(inputs, weights, biases, strict=True)
    )
    pattern = attention_pattern(q, k, _merged_mask(a, q, k), None)
    either = isinstance(pattern, Series) or isinstance(v, Series)
    mixed: Any = bilinear(pattern, v, torch.matmul) if either else pattern @ v
    out = F.linear(mixed.permute(2, 0, 1, 3).flatten(2), a["out_proj_weight"], a["out_proj_bias"])
    shown = None
    if a["need_weights"]:
        shown = pattern.mean(1) if a["average_attn_weights"] else pattern
        shown = shown if batched else shown.squeeze(0)
    return (out if batched else out.squeeze(1)), shown


def _heads(x: Any, heads: int) -> Any:
    """(length, batch, width) to (batch, heads, length, width/heads)."""
    length, batch, width = x.shape
    return x.reshape(length, batch, heads, width // heads).permute(1, 2, 0, 3)


def _merged_mask(a: dict[str, Any], q: Any, k: Any) -> Tensor | None:
    """Attention and padding masks as one additive mask over (batch, heads, length, length); True bars a place."""

    def additive(mask: Tensor) -> Tensor:
        if mask.dtype != torch.bool:
            return mask
        return torch.zeros(mask.shape, dtype=q.dtype, device=mask.device).masked_fill(mask, -torch.inf)

    masks = []
    if a["attn_mask"] is not None:  # (length, length), or (batch·heads, length, length)
        mask = additive(a["attn_mask"])
        masks.append(mask if mask.ndim == 2 else mask.view(-1, q.shape[1], *mask.shape[1:]))
    if a["key_padding_mask"] is not None:  # (batch, length), or (length,)
        masks.append(additive(a["key_padding_mask"]).view(-1, 1, 1, k.shape[2]))
    return sum(masks[1:], masks[0]) if masks else None
