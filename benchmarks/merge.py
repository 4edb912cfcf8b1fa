"""Merged layers against the layers they were, at batch 1 and 64, and the cost model's verdict against the clock.

Cases where composing should pay (a transformer's MLP, expand–depthwise–project) and pairs of 3×3 convolutions, where a
5×5 may cost more than it saves. "agrees" in the configuration: the cost model chose the faster of the two, or they
are within 5% of each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import pathsum as ps
from pathsum.merging.costs import TIMED

from .timing import interleaved, rows

PAIRS = (  # channels in, between, out, and positions
    *((3, 16, 16, 32), (4, 64, 4, 16), (8, 8, 8, 32), (8, 64, 8, 16), (16, 16, 16, 32)),
    *((16, 128, 16, 8), (32, 32, 32, 16), (32, 96, 32, 16), (64, 64, 64, 8), (64, 32, 64, 16)),
)


def transformer(width: int, tokens: int) -> tuple[nn.Module, tuple[int, ...]]:
    """The MLP of a block, d → 4d → d, on tokens."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)), (tokens, width)


def inverted(width: int, positions: int) -> tuple[nn.Module, tuple[int, ...]]:
    """Expand sixfold, depthwise 3×3, project: MobileNetV2's block without its skip."""
    wide = 6 * width
    layers = [nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()]
    layers += [nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()]
    layers += [nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width)]
    return nn.Sequential(*layers), (width, positions, positions)


def pair(a: int, b: int, c: int, positions: int) -> tuple[nn.Module, tuple[int, ...]]:
    """Two 3×3 convolutions on an input padded beforehand, so that one 5×5 is exact."""
    return nn.Sequential(nn.Conv2d(a, b, 3), nn.ReLU(), nn.Conv2d(b, c, 3)), (a, positions + 4, positions + 4)


def cases(quick: bool) -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    for width, tokens in ((32, 4),) if quick else ((192, 64), (384, 64)):
        yield f"MLP {width}→{4 * width}→{width}, {tokens} tokens", *transformer(width, tokens)
    for width, positions in ((8, 8),) if quick else ((16, 28), (24, 28), (32, 14)):
        yield f"expand–depthwise–project {width}, {positions}×{positions}", *inverted(width, positions)
    for a, b, c, positions in PAIRS[:2] if quick else PAIRS:
        yield f"3×3 ∘ 3×3, {a}→{b}→{c}, {positions}×{positions}", *pair(a, b, c, positions)


def bench(*, quick: bool = False) -> list[dict[str, Any]]:
    found = []
    for name, net, shape in cases(quick):
        net.eval()
        for batch in (1, 2) if quick else (1, 64):
            x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))
            knobbed = ps.knobs(net, x)
            made = {way: ps.merge(knobbed, 1.0, x, decide=way, batches=()) for way in ("latency", "always", "never")}
            TIMED.clear()  # each verdict from timings of its own
            with torch.no_grad():
                sides = {way: lambda m=made[way].model, x=x: m(x) for way in ("never", "always")}
                seconds = interleaved(sides, repeats=3 if quick else 31)
            chosen = "always" if any(len(d.layers) > 1 and d.merged for d in made["latency"].decisions) else "never"
            other = "never" if chosen == "always" else "always"
            agrees = seconds[chosen] <= 1.05 * seconds[other]
            config = {"batch": batch, "shape": shape, "verdict": chosen, "agrees": agrees}
            labels = {"never": "layers as they were", "always": "composed"}
            timed = {labels[side]: value for side, value in seconds.items()}
            verdict = f"{'merge' if chosen == 'always' else 'leave'}: {'right' if agrees else 'wrong'}"
            found += rows("merge", f"{name}, batch {batch} ({verdict})", timed, labels["never"], config)
    return found
