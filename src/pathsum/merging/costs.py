"""What a layer costs: floating-point operations, or seconds on this machine, each layer timed once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from .maps import Map

Decide = Literal["flops", "latency", "always", "never"]
TIMED: dict[tuple, float] = {}  # seconds of a call, by what is called and on what
# A composed map has to save so much: below it the clock cannot tell them apart.
MARGIN = {"flops": 1.0, "latency": 1.05, "always": 1.0, "never": 1.0}
_ELEMENT = 0.1  # "always" counts layers: an addition or a unit is no layer, and yet better left out


@dataclass(frozen=True)
class Prices:
    """The cost of the parts of a network, in the unit of one way to decide."""

    decide: Decide
    dtype: torch.dtype
    device: torch.device

    def of_map(self, m: Map, rows: int) -> float:
        if self.decide == "flops":
            return m.flops(rows)
        if self.decide == "latency":
            shape = (rows, m.channels[0], *(() if m.linear else m.size))
            key = (m.linear, m.weight.shape, m.stride, m.padding, m.groups, m.bias is None, shape)
            added = self.of_elements(rows * m.channels[1] * _places(m)) if m.plane else 0.0
            return self.timed(key, lambda: m.module(self.dtype, self.device), shape) + added
        return 1.0 + 1e-18 * m.flops(rows)

    def of_elements(self, numel: int) -> float:
        """An addition, a unit, or a copy of so many numbers."""
        if self.decide == "flops":
            return float(numel)
        if self.decide == "latency":
            return self.timed(("elements", numel), nn.ReLU, (numel,))
        return _ELEMENT

    def timed(self, key: tuple, make: Callable[[], nn.Module], shape: tuple[int, ...]) -> float:
        key = (*key, self.dtype, str(self.device), torch.get_num_threads())
        if key not in TIMED:
            module = make()
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(shape, generator=generator).to(self.dtype).to(self.device)
            TIMED[key] = seconds(lambda: module(x))
        return TIMED[key]


def _places(m: Map) -> int:
    total = 1
    for n in m.size_out:
        total *= n
    return total


def once(run: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def seconds(run: Callable[[], Any], *, budget: float = 0.06) -> float:
    """The least time of a call within a budget of seconds: other work on the machine only adds to it."""
    once(run)
    first = once(run)
    return min(first, *(once(run) for _ in range(min(max(4, int(budget / max(first, 1e-6))), 60))))


@torch.no_grad()
def interleaved(sides: dict[str, Callable[[], Any]], *, rounds: int = 7) -> dict[str, float]:
    """Median seconds of each side, taking turns: a slow moment of the machine hits all of them."""
    for run in sides.values():
        run()
    times = [{name: once(run) for name, run in sides.items()} for _ in range(rounds)]
    return {name: sorted(t[name] for t in times)[rounds // 2] for name in sides}
