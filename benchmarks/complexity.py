"""Geometric complexity of the paper's network, beside plain backward passes and `vmap(jacrev)`: time and peak memory.

Peak memory is measured in a process of its own for each side: the most resident beyond what there was before.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pathsum as ps

from .memory import peak, resident
from .timing import interleaved, rows

PAPER = {"depth": 10, "width": 64, "batch": 64}
QUICK = {"depth": 2, "width": 8, "batch": 4}
PROBES = 4


def sides_of(config: dict[str, int]) -> dict[str, Callable[[], Any]]:
    """Each side as a function without arguments."""
    net = ps.ResidualTower(config["depth"], config["width"], seed=0).eval()
    x = torch.randn(config["batch"], 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def plain(count: int) -> Tensor:
        """One forward pass and `count` backward passes to the input, each of one output."""
        leaf = x.clone().requires_grad_()
        y = net(leaf)
        total = torch.zeros(len(x))
        for c in range(count):
            (g,) = torch.autograd.grad(y[:, c].sum(), leaf, retain_graph=c < count - 1)
            total += g.square().sum((1, 2, 3))
        return total

    def jacrev() -> Tensor:
        weights = {k: w.detach() for k, w in net.state_dict().items()}

        def one(sample: Tensor) -> Tensor:
            return torch.func.functional_call(net, weights, (sample[None],))[0]

        return torch.func.vmap(torch.func.jacrev(one))(x).square().sum((1, 2, 3, 4))

    def with_weights() -> None:
        """The same by `.backward()`, which goes to the weights too."""
        leaf = x.clone().requires_grad_()
        y = net(leaf)
        for c in range(10):
            leaf.grad = None
            y[:, c].sum().backward(retain_graph=c < 9)
        net.zero_grad()

    return {
        "1 forward, 10 backward": lambda: plain(10),
        "1 forward, 10 .backward()": with_weights,
        "exact": lambda: ps.geometric_complexity(net, x),
        "vmap(jacrev)": jacrev,
        f"1 forward, {PROBES} backward": lambda: plain(PROBES),
        f"hutchinson, {PROBES} probes": lambda: ps.geometric_complexity(net, x, method="hutchinson", probes=PROBES),
        "by order 2": lambda: ps.geometric_complexity.by_order(net, x, order=2),
    }


def cell(side: str, config: dict[str, int]) -> int:
    """Peak memory of a side, in a new process."""
    command = [sys.executable, "-m", "benchmarks.complexity", json.dumps([side, config])]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"benchmark of {side} failed: {done.stderr.strip().splitlines()[-1]}")
    return int(done.stdout.splitlines()[-1])


def measure(side: str, config: dict[str, int]) -> int:
    """Bytes; to be run in a process of its own."""
    sides_of(QUICK)[side]()  # what torch itself loads at first use
    run = sides_of(config)[side]
    before = resident()
    run()
    return peak() - before


def bench(*, quick: bool = False) -> list[dict[str, Any]]:
    config = QUICK if quick else PAPER
    sides = sides_of(config)
    seconds = interleaved(sides, repeats=2 if quick else 7)
    memory = {side: cell(side, config) for side in sides}
    case = f"tower, depth {config['depth']}, width {config['width']}, batch {config['batch']}"
    plain, weights, exact, jacrev, few, probed, by_order = sides
    found = []
    for against, side in ((plain, exact), (weights, exact), (jacrev, exact), (few, probed), (exact, by_order)):
        found += rows("complexity", case, {against: seconds[against], side: seconds[side]}, against, config)
    for row in found:
        row["peak_bytes"] = memory[row["side"]]
        row["peak_ratio"] = memory[row["side"]] / (memory[row["against"]] or 1)
    return found


if __name__ == "__main__":
    print(measure(*json.loads(sys.argv[1])))
