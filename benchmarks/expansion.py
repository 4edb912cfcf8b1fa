"""Cost of all orders of a convolutional tower, in forward passes of the same net, beside nested torch.func.jvp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import pathsum as ps

from .timing import interleaved, rows


def nested_jvp(net: ps.ResidualTower, x: Tensor, order: int) -> Callable[[], Tensor]:
    """d^order f/dλ^order at λ = 0 by jvp nested `order` times: the alternative torch itself offers."""
    blocks: list[nn.Module] = list(net.blocks)

    def f(lam: Tensor) -> Tensor:
        z = net.encoder(x)
        for block in blocks:
            z = z + lam * block(z)
        return net.decoder(z)

    def derivative(g: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda lam: torch.func.jvp(g, (lam,), (torch.ones(()),))[1]

    g = f
    for _ in range(order):
        g = derivative(g)
    return lambda: g(torch.zeros(()))


def bench(*, quick: bool = False) -> list[dict[str, Any]]:
    depth = 10 if quick else 100
    config = {"depth": depth, "width": 32, "maps": "8x8", "batch": 16, "norm": None, "scale": "1/sqrt(n)"}
    net = ps.ResidualTower(depth=depth, width=32, encoder="affine", scale="1/sqrt(n)", seed=0).eval()
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    knobbed = ps.knobs(net, x)
    with torch.no_grad():
        sides: dict[str, Callable[[], Any]] = {"forward": lambda: net(x)}
        for order in (1, 2, 3, 4, 8, 16):
            sides[f"expand order {order}"] = lambda k=order: ps.expand(knobbed, x, order=k)
        for order in (1, 2, 3):
            sides[f"nested jvp order {order}"] = nested_jvp(net, x, order)
        seconds = interleaved(sides, repeats=3 if quick else 7, warmup=1)
    return rows("expansion", f"conv tower depth {depth}", seconds, "forward", config)
