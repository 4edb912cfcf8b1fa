"""Cost of all path lengths of ResNet-32 (untrained weights: the arithmetic is the same), in forward passes."""

from __future__ import annotations

from typing import Any

import torch
from tests.architectures import resnet20, resnet32

import pathsum as ps

from .timing import interleaved, rows


def bench(*, quick: bool = False) -> list[dict[str, Any]]:
    found = []
    for name, build in (("resnet20", resnet20), ("resnet32", resnet32)):
        torch.manual_seed(0)
        net = build().eval()
        batch = 32 if quick else 64
        x = torch.randn(batch, 3, 32, 32)
        knobbed = ps.knobs(net, x)
        with torch.no_grad():
            sides = {
                "forward": lambda net=net, x=x: net(x),
                "spectrum, all lengths": lambda k=knobbed, x=x: ps.spectrum(k, x),
                "spectrum, max_length=4": lambda k=knobbed, x=x: ps.spectrum(k, x, max_length=4),
            }
            seconds = interleaved(sides, repeats=3 if quick else 7, warmup=1)
        found += rows("spectrum", name, seconds, "forward", {"batch": batch, "branches": len(knobbed.branches)})
    return found
