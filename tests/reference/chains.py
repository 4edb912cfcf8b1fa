"""Orders of a piecewise-linear tower as sums over chains of branches (THEORY §2, P1 Theorem 3.1)."""

import warnings
from itertools import combinations

import torch
from torch import Tensor, nn


def chain_terms(encoder: nn.Module, branches: list[nn.Module], decoder: nn.Module, x: Tensor) -> Tensor:
    """`M_k = D' Σ_{i1<…<ik} F_{ik}'(z) … F_{i2}'(z) F_{i1}(z)` at z = E(x), k = 0..n; `M_0 = D(z)`.

    Every chain is followed separately, by first-order forward-mode derivatives of the true branches. That is
    the whole expansion where branches are piecewise linear and the decoder is affine.
    """
    z = encoder(x).detach()

    def times_jacobian(f: nn.Module, v: Tensor) -> Tensor:
        with warnings.catch_warnings():
            # PyTorch's own forward mode compiles its rules with the deprecated torch.jit.script
            warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
            return torch.func.jvp(f, (z,), (v,))[1].detach()

    terms = [decoder(z).detach()]
    for length in range(1, len(branches) + 1):
        total = torch.zeros_like(z)
        for chain in combinations(branches, length):
            v = chain[0](z).detach()
            for branch in chain[1:]:
                v = times_jacobian(branch, v)
            total = total + v
        terms.append(times_jacobian(decoder, total))
    return torch.stack(terms)
