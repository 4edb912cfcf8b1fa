"""One plan, many ways to write the join: encoder, n blocks, decoder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dense(nn.Sequential):
    """Linear, activation, Linear."""

    def __init__(self, width: int, act: type[nn.Module] = nn.Tanh) -> None:
        super().__init__(nn.Linear(width, width), act(), nn.Linear(width, width))


class Subtracted(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = Dense(width)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.f(x)


class AlphaAdded(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = Dense(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.f(x), alpha=0.5)


class AddedInPlace(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = Dense(width)

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(self.f(x))


class ReZero(nn.Module):
    """A learned 0-dim multiplier (Bachlechner et al. 2021), here away from its start at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = Dense(width)
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.f(x)


class LayerScale(nn.Module):
    """A learned multiplier for each channel (Touvron et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = Dense(width)
        self.gamma = nn.Parameter(torch.linspace(0.2, 0.8, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.f(x)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016) as timm writes it: the identity in eval mode."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        keep = x.new_empty(x.shape[0], *(1,) * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * keep / (1 - self.p)


class StochasticDepth(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = Dense(width, nn.SiLU)
        self.drop_path = DropPath(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.f(x))


class GatedMLP(nn.Module):
    """SiLU(gate)·up, without norm (Shazeer 2020; Llama's MLP)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


class LayerNormed(nn.Module):
    """Pre-LN dense block with any activation."""

    def __init__(self, width: int, act: type[nn.Module] = nn.Tanh) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.f = Dense(width, act)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(self.norm(x))


class LayerNormedRelu(LayerNormed):
    def __init__(self, width: int) -> None:
        super().__init__(width, nn.ReLU)


class RMSNormed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.f = Dense(width, nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(self.norm(x))


class DenseNet(nn.Module):
    """Linear encoder, `depth` blocks of one kind, linear decoder."""

    def __init__(self, block: type[nn.Module], *, depth: int = 5, width: int = 7, num_classes: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, width)
        self.blocks = nn.ModuleList(block(width) for _ in range(depth))
        self.decoder = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        for block in self.blocks:
            x = block(x)
        return self.decoder(x)


class Bessel(nn.Module):
    """A branch with a function that nobody gave a rule."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.special.bessel_j0(self.linear(x))
