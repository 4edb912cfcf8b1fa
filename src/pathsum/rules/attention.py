"""Softmax and attention. Gated: the pattern is frozen at its value; Taylor: softmax is decomposed, not frozen."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..coefficients import Space, add_coeffs, align, cauchy
from ..errors import MissingRuleError, ModeError
from ..series import Series
from . import argument, rule
from .elementwise import exp, log, power
from .products import bilinear


def softmax_coeffs(c: Tensor, space: Space, dim: int) -> Tensor:
    """exp(a − max a₀)/Σ exp(a − max a₀); overwrites order 0 of c."""
    top = c[0].detach().amax(dim, keepdim=True)
    c[0].sub_(torch.where(top.isfinite(), top, torch.zeros_like(top)))
    dead = c[0] == -torch.inf  # masked scores: exp is 0 at every order
    if bool(dead.any()):
        c[0].masked_fill_(dead, 0.0)
        e = exp(c, space) * ~dead
    else:
        e = exp(c, space)
    total = e.sum(dim if dim < 0 else dim + 1, keepdim=True)
    return cauchy(e, power(total, -1.0, space), space)


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
    return x.like(softmax_coeffs(x.c.clone(), x.space, dim), gate=2)


@rule("log_softmax")
def log_softmax(func: Callable[..., Any], args: tuple, kwargs: dict) -> Series:
    """a − log Σ exp(a); gated: the log-sum is frozen, a bias path of order 0."""
    x, dim = _cast(args, kwargs), argument(args, kwargs, 1, "dim")
    if x.space.gated:
        out = x.c.clone()
        out[0].sub_(x.base().logsumexp(dim, keepdim=True))
        return x.like(out)
    top = x.c[0].detach().amax(dim, keepdim=True)
    c = x.c.clone()
    c[0].sub_(top)
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
    mask, blind = without_blind_rows(mask)
    pattern = attention_pattern(q, k, mask, kwargs.get("scale"))
    return mixed(pattern if blind is None else pattern.masked_fill(blind, 0.0), v)


def mixed(pattern: Any, v: Any) -> Any:
    """pattern @ v."""
    either = isinstance(pattern, Series) or isinstance(v, Series)
    return bilinear(pattern, v, torch.matmul) if either else pattern @ v


def without_blind_rows(mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """A mask that bars no row altogether, and the rows it barred: torch's fused attention gives them zeros."""
    if mask is None or isinstance(mask, Series):
        return mask, None
    blind = (~mask if mask.dtype == torch.bool else mask == -torch.inf).all(-1, keepdim=True)
    if not bool(blind.any()):
        return mask, None
    return (mask | blind if mask.dtype == torch.bool else mask.masked_fill(blind, 0.0)), blind


def attention_pattern(q: Any, k: Any, mask: Tensor | None, scale: float | None) -> Any:
    """softmax(q kᵀ·scale + mask); gated: a plain tensor. A boolean mask says which places take part."""
    if isinstance(mask, Series):
        raise MissingRuleError("attention with a mask that depends on λ: add the mask to the scores and use softmax")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if any(isinstance(x, Series) and x.space.gated for x in (q, k)):
        q, k = (x.base() if isinstance(x, Series) else x for x in (q, k))
    scores: Any = torch.matmul(q, k.transpose(-2, -1))
    if not isinstance(scores, Series):
        return torch.softmax(masked(scores * scale, mask), -1)
    c = scores.c.mul_(scale)  # new memory, made by the product
    if mask is not None:
        shape = torch.broadcast_shapes(c.shape[1:], mask.shape)
        c = c if shape == c.shape[1:] else align(c, len(shape)).expand(len(c), *shape).clone()
        c[0] = masked(c[0], mask)  # higher orders of a barred place are dropped by softmax_coeffs
    return scores.like(softmax_coeffs(c, scores.space, -1))


def masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Scores with a mask put on: added, or, where it is boolean, of the places that take part."""
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


@rule("multi_head_attention_forward")
def multihead(func: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    """`nn.MultiheadAttention`: its projections, attention head by head, and the output projection."""
    given = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs)
    given.apply_defaults()
    a = given.arguments
    if a["dropout_p"] and a["training"]:
        raise ModeError("nn.MultiheadAttention with dropout in train mode: call model.eval() first")
    for name in ("static_k", "static_v"):
        if a[name] is not None:
            raise MissingRuleError(f"multi_head_attention_forward with {name} on a series: pass key and value instead")
    inputs = [a["query"], a["key"], a["value"]]
    batched = inputs[0].ndim == 3
    if a["use_separate_proj_weight"]:
        weights = [a["q_proj_weight"], a["k_proj_weight"], a["v_proj_weight"]]
    else:
        weights = a["in_proj_weight"].chunk(3)
    biases = [None] * 3 if a["in_proj_bias"] is None else a["in_proj_bias"].chunk(3)
    heads = a["num_heads"]
    q, k, v = (
        F.linear(x if batched else x.unsqueeze(1), w, b) for x, w, b in zip(inputs, weights, biases, strict=True)
    )
    length = k.shape[0]
    if a["bias_k"] is not None:  # one more place to look at, the same for all
        k, v = (torch.cat([x, b.repeat(1, x.shape[1], 1)]) for x, b in ((k, a["bias_k"]), (v, a["bias_v"])))
    if a["add_zero_attn"]:
        k, v = (F.pad(x, (0, 0, 0, 0, 0, 1)) for x in (k, v))
    q, k, v = (_heads(x, heads) for x in (q, k, v))  # (batch, heads, length, head width)
    mask, blind = _merged_mask(a, q, length, k.shape[2] - length), None
    if not a["need_weights"]:
        mask, blind = without_blind_rows(mask)
    pattern = attention_pattern(q, k, mask, None)
    heard = mixed(pattern if blind is None else pattern.masked_fill(blind, 0.0), v)
    out = F.linear(heard.permute(2, 0, 1, 3).flatten(2), a["out_proj_weight"], a["out_proj_bias"])
    shown = None
    if a["need_weights"]:
        shown = pattern.mean(1) if a["average_attn_weights"] else pattern
        shown = shown if batched else shown.squeeze(0)
    return (out if batched else out.squeeze(1)), shown


def _heads(x: Any, heads: int) -> Any:
    """(length, batch, width) to (batch, heads, length, width/heads)."""
    length, batch, width = x.shape
    return x.reshape(length, batch, heads, width // heads).permute(1, 2, 0, 3)


def _merged_mask(a: dict[str, Any], q: Any, length: int, more: int) -> Tensor | None:
    """Attention and padding masks as one additive mask (batch, heads, length, length + more); True bars a place."""

    def additive(mask: Tensor) -> Tensor:
        if mask.dtype != torch.bool:
            return mask
        return torch.zeros(mask.shape, dtype=q.dtype, device=mask.device).masked_fill(mask, -torch.inf)

    masks = []
    if a["attn_mask"] is not None:  # (length, length), or (batch·heads, length, length)
        mask = additive(a["attn_mask"])
        masks.append(mask if mask.ndim == 2 else mask.view(-1, q.shape[1], *mask.shape[1:]))
    if a["key_padding_mask"] is not None:  # (batch, length), or (length,)
        masks.append(additive(a["key_padding_mask"]).view(-1, 1, 1, length))
    return F.pad(sum(masks[1:], masks[0]), (0, more)) if masks else None
