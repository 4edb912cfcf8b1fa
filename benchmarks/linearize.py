"""A step of `linearize` beside the ordinary training step of the same network; to be at most 1.3 times as long.

Both sides run the library's own training loop, data and all, evaluations left out of the time by running one only at
the end. Slopes start at 0, where every unit is nonlinear: the most a step can cost.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pathsum.linearize import linearize
from pathsum.nets.tower import ResidualTower
from pathsum.train import TrainConfig, fit

from .timing import interleaved, rows
from .training import noise

BATCH, LR, OMEGA = 128, 0.01, 1e-3


class Block(nn.Module):
    """Two 3×3 convolutions with BatchNorm; a strided shortcut takes every second pixel and pads channels."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1, self.bn2, self.relu = nn.BatchNorm2d(width), nn.BatchNorm2d(width), nn.ReLU()
        self.stride, self.pad = stride, width - inside

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        skip = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.pad)) if self.pad else x
        return self.relu(out + skip)


def resnet20() -> nn.Module:
    """He et al.'s for CIFAR-10: three stages of three blocks, 19 ReLUs."""
    widths = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*stem, *(Block(*w) for w in widths), *head)


def tower() -> nn.Module:
    return ResidualTower(10, 32, seed=0)


def tower_gelu() -> nn.Module:
    return ResidualTower(10, 32, activation="gelu", seed=0)


def bench(*, quick: bool = False) -> list[dict[str, Any]]:
    steps, repeats, batch = (2, 1, 16) if quick else (20, 5, BATCH)
    data = noise(steps * batch, 1)
    config = TrainConfig(lr=LR, steps=steps, eval_every=steps, batch_size=batch)
    found = []
    for build in (resnet20, tower, tower_gelu):
        net = build()
        sides: dict[str, Callable[[], Any]] = {"fit": lambda net=net: fit(copy.deepcopy(net), data, config)}
        for by in ("channel", "layer", "element"):
            sides[f"linearize by {by}"] = lambda net=net, by=by: linearize(net, data, by, omega=OMEGA, train=config)
        seconds = interleaved(sides, repeats=repeats, warmup=1)
        per_step = {side: value / steps for side, value in seconds.items()}
        made = {"net": build.__name__, "batch": batch, "steps": steps}
        found += rows("linearize", f"one step, {build.__name__}, batch {batch}", per_step, "fit", made)
    return found
