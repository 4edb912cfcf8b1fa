"""Geometric complexity by its definition: Jacobians one sample at a time, and products of matrices written out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.reference.interpolation import circle
from tests.reference.pieces import Pieces, freeze


def per_sample(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """‖∂f/∂x‖_F² of each sample, by `torch.func.jacrev` of a batch of one."""
    with sdpa_kernel(SDPBackend.MATH):
        values = [torch.func.jacrev(lambda one: f(one[None])[0])(sample).square().sum() for sample in x]
    return torch.stack(values)


def corollary(encoder: Callable, branches: list[Callable], decoder: Callable, x: Tensor) -> tuple[Tensor, Tensor]:
    """Corollary B.0.1: `GC(M_0)` and `2 mean Tr((W_η E')ᵀ Σᵢ W_η Fᵢ'(E) E')`, every factor a matrix."""

    def matrix(f: Callable, at: Tensor) -> Tensor:
        out = f(at[None])[0]
        return torch.func.jacrev(lambda v: f(v[None])[0])(at).reshape(out.numel(), at.numel())

    zeroth, first = [], []
    for sample in x:
        z = encoder(sample[None])[0]
        w, e = matrix(decoder, z), matrix(encoder, sample)
        total = sum(w @ matrix(f, z) @ e for f in branches)
        zeroth.append((w @ e).square().sum())
        first.append(2 * torch.trace((w @ e).T @ total))
    return torch.stack(zeroth).mean().detach(), torch.stack(first).mean().detach()


def frozen_gram(pieces: Pieces, x: Tensor) -> Tensor:
    """mean_x ⟨∂v_a, ∂v_b⟩ with gates as at x: the frozen network is affine, so a column is a difference."""
    depth = len(pieces.blocks)
    frozen = freeze(pieces, x, 1.0, "gates")

    def terms(at: Tensor) -> Tensor:
        return circle(frozen, at, depth, 1.0, depth + 1)

    base, columns = terms(x), []
    for i in range(x[0].numel()):
        step = torch.zeros_like(x).flatten(1)
        step[:, i] = 1
        columns.append((terms(x + step.view_as(x)) - base).flatten(2))
    jacobians = torch.stack(columns, -1).flatten(2)  # (n+1, B, C·D)
    return torch.einsum("abd,cbd->ac", jacobians, jacobians) / len(x)
