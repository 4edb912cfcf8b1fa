"""Depth embedding by hand (Dherin & Munn 2025, Appendix C): which number goes where in a deeper tower."""

import math

import torch
from torch import Tensor

LAST = {  # what ends a branch: the last layer, or the norm behind it
    ("ResidualMLP", None): ("linear2.weight", "linear2.bias"),
    ("ResidualMLP", "batch"): ("norm2.weight", "norm2.bias"),
    ("ResidualTower", None): ("conv2.weight",),
    ("ResidualTower", "batch"): ("norm2.weight", "norm2.bias"),
}


def lam_of(rule: str, n: int) -> float:
    """λ of the three rules that depend on n, or do not."""
    return {"1/n": 1 / n, "1/sqrt(n)": 1 / math.sqrt(n), "0.3": 0.3}[rule]


def embed(state: dict[str, Tensor], places: list[int | None], rule: str, last: tuple[str, ...]) -> dict[str, Tensor]:
    """The parameters of the deeper tower: block i of it is old block `places[i]`, or, for None, left out here.

    z + λ'·F'(z) = z + λ·F(z) where F' = (λ/λ')·F, and F is linear in its last layer, weight and bias together.
    """
    old = sum(place is not None for place in places)
    factor = lam_of(rule, old) / lam_of(rule, len(places))
    made = {name: value for name, value in state.items() if not name.startswith("blocks.")}
    for i, place in enumerate(places):
        for name, value in state.items():
            if place is not None and name.startswith(f"blocks.{place}."):
                rest = name.split(".", 2)[2]
                made[f"blocks.{i}.{rest}"] = value * factor if rest in last else value
    return made


def spread(old: int, new: int) -> list[int | None]:
    """Interleaving, one block at a time: a new one wherever the line of slope new/old passes a whole number."""
    places: list[int | None] = []
    owed = 0
    for i in range(old):
        places.append(i)
        owed += new
        while owed >= old:
            places.append(None)
            owed -= old
    return places


def momentum(gradients: list[Tensor], mu: float) -> Tensor:
    """SGD's buffer after these gradients: Σ μ^(T−t)·g_t."""
    return sum((mu ** (len(gradients) - 1 - t) * g for t, g in enumerate(gradients)), torch.zeros_like(gradients[0]))


def adam(gradients: list[Tensor], beta1: float, beta2: float) -> tuple[Tensor, Tensor]:
    """Adam's two running means after these gradients."""
    count = len(gradients)
    mean = sum((1 - beta1) * beta1 ** (count - 1 - t) * g for t, g in enumerate(gradients))
    square = sum((1 - beta2) * beta2 ** (count - 1 - t) * g**2 for t, g in enumerate(gradients))
    return mean, square
