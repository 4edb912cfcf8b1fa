"""The prior on slopes, literally: minimization on a grid, and a training loop that spells everything out."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def proximal(v: float, t: float, power: float) -> float:
    """argmin over u ≥ 0 of ½(u − v)² + t·u^p, by ever finer grids around the best point of the last one."""

    def loss(u: np.ndarray) -> np.ndarray:
        return 0.5 * (u - v) ** 2 + t * u**power

    low, high = 0.0, max(v, 0.0)
    for _ in range(12):
        grid = np.linspace(low, high, 2001)
        best = grid[np.argmin(loss(grid))]
        step = (high - low) / 2000
        low, high = max(best - 2 * step, 0.0), best + 2 * step
    return 0.0 if loss(np.array(0.0)) <= loss(np.array(best)) else float(best)


def bend(a: Tensor, alpha: Tensor | float, phi) -> Tensor:
    """αa + (1 − α)φ(a), α in the shape that broadcasts."""
    return alpha * a + (1 - alpha) * phi(a)


def linearize(
    layers: list[nn.Linear],
    batches: list[tuple[Tensor, Tensor]],
    *,
    lr: float,
    alpha_lr: float,
    omega: float,
    freeze: float,
) -> list[Tensor]:
    """A plain ReLU net of linear layers (in place) and one slope a channel of each hidden layer: SGD without momentum.

    Returns the slopes.
    """
    alphas = [torch.zeros(layer.out_features, dtype=torch.float64) for layer in layers[:-1]]
    for x, y in batches:
        leaves = [a.clone().requires_grad_(True) for a in alphas]
        z = x.flatten(1)
        for layer, alpha in zip(layers[:-1], leaves, strict=True):
            z = bend(layer(z), alpha, torch.relu)
        loss = F.cross_entropy(layers[-1](z), y)
        weights = [p for layer in layers for p in layer.parameters()]
        grads = torch.autograd.grad(loss, [*weights, *leaves])
        with torch.no_grad():
            for p, g in zip(weights, grads, strict=False):
                p -= lr * g
        for alpha, g in zip(alphas, grads[len(weights) :], strict=True):
            for i in range(len(alpha)):
                if alpha[i] == 1:
                    continue
                u = proximal(max(1 - float(alpha[i] - alpha_lr * g[i]), 0.0), alpha_lr * omega, 0.5)
                alpha[i] = 1.0 if u < freeze else 1 - u
    return alphas
