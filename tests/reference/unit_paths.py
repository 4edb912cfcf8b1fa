"""A small residual network with frozen gates, its paths through units one by one, and its value at any t."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Paths = list[tuple[int, Tensor]]  # how many units were passed, and what arrives


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.f = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


def affine(layer: nn.Linear | nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Matrix and constant of a layer."""
    if isinstance(layer, nn.Linear):
        return layer.weight, layer.bias
    scale = layer.weight / torch.sqrt(layer.running_var + layer.eps)
    return torch.diag(scale), layer.bias - layer.running_mean * scale


@torch.no_grad()
def paths_of(layers: nn.Sequential, paths: Paths, alphas: list[float | Tensor]) -> Paths:
    """Every path, each on its own to the end; `alphas` is used up in the order of the units."""
    for layer in layers:
        if isinstance(layer, Residual):
            paths = paths + paths_of(layer.f, paths, alphas)
        elif isinstance(layer, nn.Linear | nn.BatchNorm1d):
            matrix, constant = affine(layer)
            paths = [(k, v @ matrix.T) for k, v in paths] + [(0, constant.expand(len(paths[0][1]), -1))]
        else:
            alpha = alphas.pop(0)
            slope, at_zero = gate(layer, sum(v for _, v in paths))
            straight = [(k, alpha * v) for k, v in paths]
            bent = [(k + 1, (1 - alpha) * slope * v) for k, v in paths]
            paths = [*straight, *bent, (1, (1 - alpha) * at_zero)]
    return paths


def gate(phi: Callable[[Tensor], Tensor], v: Tensor) -> tuple[Tensor, Tensor]:
    """g and φ(0) with φ(v) = g·v + φ(0)."""
    at_zero = phi(torch.zeros_like(v))
    return (phi(v) - at_zero) / v, at_zero


def unit_terms(layers: nn.Sequential, x: Tensor, alphas: list[float | Tensor], units: int) -> Tensor:
    """The paths summed by length."""
    terms: list[Tensor | None] = [None] * (units + 1)
    for k, v in paths_of(layers, [(0, x)], list(alphas)):
        terms[k] = v if terms[k] is None else terms[k] + v
    some = next(t for t in terms if t is not None)
    return torch.stack([torch.zeros_like(some) if t is None else t for t in terms])


@torch.no_grad()
def fitted_terms(layers: nn.Sequential, x: Tensor, alphas: list[float | Tensor], units: int) -> Tensor:
    """The coefficients of the polynomial in t that the network is with the gates of t = 1: from its values on |t| = 1."""
    n = units + 1
    nodes = torch.exp(2j * torch.pi * torch.arange(n) / n).to(torch.complex128)
    values = [at(layers, x, x.to(torch.complex128), t, list(alphas))[1] for t in nodes]
    return torch.fft.fft(torch.stack(values), dim=0).real / n


def at(layers: nn.Sequential, x: Tensor, z: Tensor, t: Tensor, alphas: list[float | Tensor]) -> tuple[Tensor, Tensor]:
    """The network at t = 1 (which sets the gates) and at t, side by side."""
    for layer in layers:
        if isinstance(layer, Residual):
            fx, fz = at(layer.f, x, z, t, alphas)
            x, z = x + fx, z + fz
        elif isinstance(layer, nn.Linear | nn.BatchNorm1d):
            matrix, constant = affine(layer)
            x, z = x @ matrix.T + constant, z @ matrix.T.to(z.dtype) + constant
        else:
            alpha = alphas.pop(0)
            slope, at_zero = gate(layer, x)
            x = alpha * x + (1 - alpha) * layer(x)
            z = alpha * z + (1 - alpha) * t * (slope * z + at_zero)
    return x, z
