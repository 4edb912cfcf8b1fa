"""Linear towers whose orders are known in closed form."""

import math
from itertools import combinations

import torch
from torch import Tensor, nn

from tests.architectures import DenseNet


def elementary_symmetric(values: list[float], k: int) -> float:
    """`e_k(c) = Σ_{i1<…<ik} c_{i1} … c_{ik}`; equal c give `C(n,k) c^k`."""
    return math.fsum(math.prod(chain) for chain in combinations(values, k))


class Multiple(nn.Module):
    """F(z) = c·z as a dense layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x)


@torch.no_grad()
def multiples_tower(c: list[float], *, width: int = 5) -> DenseNet:
    """The tower `D ∏(1 + λ c_i) E` in float64."""
    net = DenseNet(Multiple, depth=len(c), width=width).double().eval()
    for block, value in zip(net.blocks, c, strict=True):
        block.linear.weight.copy_(value * torch.eye(width, dtype=torch.float64))
    return net


@torch.no_grad()
def multiples_terms(net: DenseNet, c: list[float], x: Tensor) -> Tensor:
    """`M_0 = D(E(x))`, `M_k = e_k(c) · W_η E(x)`."""
    z = net.encoder(x)
    higher = [elementary_symmetric(c, k) * (z @ net.decoder.weight.T) for k in range(1, len(c) + 1)]
    return torch.stack([net.decoder(z), *higher])
