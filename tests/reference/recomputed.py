"""A transformer walked by hand with its paths sorted by length: norms and attention are frozen, or of the paths so far.

A tensor of the network is a list, entry k the sum over all paths that have passed k branches. Recomputed functions are
called on the sums of the paths up to each length, and give the differences.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Paths = list[Tensor]


def total(x: Paths) -> Tensor:
    return torch.stack(x).sum(0)


def telescoped(f: Callable[..., Tensor], *factors: Paths) -> Paths:
    """f(S_0), f(S_1) − f(S_0), …"""
    values = [f(*(total(x[: k + 1]) for x in factors)) for k in range(len(factors[0]))]
    return [values[0]] + [values[k] - values[k - 1] for k in range(1, len(values))]


def linear(x: Paths, layer: nn.Linear) -> Paths:
    out = [F.linear(part, layer.weight) for part in x]
    return out if layer.bias is None else [out[0] + layer.bias, *out[1:]]


def each(x: Paths, f: Callable[[Tensor], Tensor]) -> Paths:
    """A linear map without a constant."""
    return [f(part) for part in x]


def gelu(x: Paths, approximate: str = "none") -> Paths:
    """a·g, g frozen at the value."""
    v = total(x)
    return each(x, lambda part: part * (F.gelu(v, approximate=approximate) / v))


def join(skip: Paths, branch: Paths) -> Paths:
    """Paths through a branch are one longer."""
    return [skip[0]] + [skip[k] + branch[k - 1] for k in range(1, len(skip))]


def layer_norm(x: Paths, norm: nn.LayerNorm, recompute: frozenset[str]) -> Paths:
    if "norm" in recompute:
        return telescoped(lambda v: F.layer_norm(v, (v.shape[-1],), norm.weight, norm.bias, norm.eps), x)
    spread = torch.sqrt(total(x).var(-1, unbiased=False, keepdim=True) + norm.eps)
    out = each(x, lambda part: (part - part.mean(-1, keepdim=True)) / spread * norm.weight)
    return [out[0] + norm.bias, *out[1:]]


def rms_norm(x: Paths, weight: Tensor, eps: float, recompute: frozenset[str]) -> Paths:
    def root(v: Tensor) -> Tensor:
        return torch.sqrt((v * v).mean(-1, keepdim=True) + eps)

    if "norm" in recompute:
        return telescoped(lambda v: v / root(v) * weight, x)
    frozen = root(total(x))
    return each(x, lambda part: part / frozen * weight)


def attention(x: Paths, qkv: nn.Linear, proj: nn.Linear, heads: int, causal: bool, recompute: frozenset[str]) -> Paths:
    """softmax(qkᵀ/√d)·v head by head."""

    def head(part: Tensor) -> Tensor:
        return part.unflatten(-1, (heads, -1)).transpose(1, 2)

    def pattern(q: Tensor, k: Tensor) -> Tensor:
        weights = torch.exp(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5)
        weights = weights.tril() if causal else weights
        return weights / weights.sum(-1, keepdim=True)

    width = proj.in_features
    q, k, v = (each(linear(x, qkv), lambda part, i=i: head(part[..., i * width : (i + 1) * width])) for i in range(3))
    if "attention" in recompute:
        seen = telescoped(lambda q, k, v: pattern(q, k) @ v, q, k, v)
    else:
        frozen = pattern(total(q), total(k))
        seen = each(v, lambda part: frozen @ part)
    return linear(each(seen, lambda part: part.transpose(1, 2).flatten(2)), proj)


def embedded(x: Tensor, depth: int) -> Paths:
    """The stream at the input: a path through no branch."""
    return [x] + [torch.zeros_like(x)] * depth


@torch.no_grad()
def pre_ln(model: nn.Module, ids: Tensor, recompute: frozenset[str]) -> Tensor:
    """Path lengths of `tests.architectures.PreLNTransformer`, (lengths, batch, …)."""
    x = embedded(model.wte(ids) + model.wpe(torch.arange(ids.shape[1])), 2 * len(model.h))
    for block in model.h:
        seen = layer_norm(x, block.ln1, recompute)
        x = join(x, attention(seen, block.attn.qkv, block.attn.proj, block.attn.heads, True, recompute))
        hidden = gelu(linear(layer_norm(x, block.ln2, recompute), block.up), "tanh")
        x = join(x, linear(hidden, block.down))
    return torch.stack(linear(layer_norm(x, model.ln_f, recompute), model.head))


@torch.no_grad()
def post_ln(model: nn.Module, patches: Tensor, recompute: frozenset[str]) -> Tensor:
    """Path lengths of `tests.architectures.PostLNTransformer`."""
    x = embedded(model.embed(patches), 2 * len(model.layers))
    x[0] = x[0].clone()
    for block in model.layers:
        seen = attention(x, block.attn.qkv, block.attn.proj, block.attn.heads, False, recompute)
        x = layer_norm(join(x, seen), block.ln1, recompute)
        x = layer_norm(join(x, linear(gelu(linear(x, block.up)), block.down)), block.ln2, recompute)
    return torch.stack(linear(each(x, lambda part: part.mean(1)), model.head))


@torch.no_grad()
def rms(model: nn.Module, patches: Tensor, recompute: frozenset[str]) -> Tensor:
    """Path lengths of `tests.test_recompute.RMSTransformer`."""
    x = embedded(model.embed(patches), 2 * len(model.layers))
    for block in model.layers:
        seen = rms_norm(x, block.norm1.weight, 1e-6, recompute)
        x = join(x, attention(seen, block.attn.qkv, block.attn.proj, block.attn.heads, False, recompute))
        seen = rms_norm(x, block.norm2.weight, 1e-6, recompute)
        x = join(x, linear(gelu(linear(seen, block.up)), block.down))
    return torch.stack(linear(each(x, lambda part: part.mean(1)), model.head))
