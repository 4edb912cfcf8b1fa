"""Small networks written as lists of nodes: built as a module, and all their paths walked one by one (THEORY §10)."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Node:
    """kind: "conv", "unit", "add", "cat", "pad" (with zero channels) or "norm", of the nodes `sources`."""

    kind: str
    sources: tuple[int, ...]
    width: int
    groups: int = 1
    linear: tuple[bool, ...] = field(default=())  # of each channel of a unit


class Net(nn.Module):
    """Node 0 is the input, the last one the output."""

    def __init__(self, width: int, nodes: list[Node]) -> None:
        super().__init__()
        self.nodes = nodes
        widths = [width, *(n.width for n in nodes)]
        layers = {
            str(i): nn.Conv2d(widths[n.sources[0]], n.width, 3, padding=1, groups=n.groups)
            if n.kind == "conv"
            else nn.BatchNorm2d(n.width)
            for i, n in enumerate(nodes)
            if n.kind in ("conv", "norm")
        }
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        made = [x]
        for i, n in enumerate(self.nodes):
            v = [made[s] for s in n.sources]
            if n.kind == "unit":
                made.append(F.relu(v[0]))
            elif n.kind == "add":
                made.append(v[0] + v[1])
            elif n.kind == "cat":
                made.append(torch.cat(v, 1))
            elif n.kind == "pad":
                made.append(F.pad(v[0], (0, 0, 0, 0, 0, n.width - v[0].shape[1])))
            else:
                made.append(self.layers[str(i)](v[0]))
        return made[-1]


def ways(width: int, nodes: list[Node], i: int, channel: int) -> list[tuple[int, int]]:
    """Where a walk may go on to from a channel of node i."""
    n = nodes[i - 1]
    widths = [width, *(m.width for m in nodes)]
    if n.kind == "conv":
        size = widths[n.sources[0]] // n.groups
        group = channel // (n.width // n.groups)
        return [(n.sources[0], c) for c in range(group * size, (group + 1) * size)]
    if n.kind == "cat":
        a, b = n.sources
        return [(a, channel)] if channel < widths[a] else [(b, channel - widths[a])]
    if n.kind == "pad":
        return [(n.sources[0], channel)] if channel < widths[n.sources[0]] else []
    return [(s, channel) for s in n.sources]


def walks(width: int, nodes: list[Node], i: int, channel: int) -> Iterator[tuple[float, int]]:
    """Every path from a channel of node i back to the input: its chance, and the nonlinear units on it.

    Each step is uniform over the ways that reach the input at all.
    """
    if i == 0:
        yield 1.0, 0
        return
    n = nodes[i - 1]
    passes = int(n.kind == "unit" and not n.linear[channel])
    found = [list(walks(width, nodes, *way)) for way in ways(width, nodes, i, channel)]
    found = [paths for paths in found if paths]
    for paths in found:
        for chance, length in paths:
            yield chance / len(found), length + passes


def histogram(width: int, nodes: list[Node]) -> tuple[list[float], list[int]]:
    """Chance of each length from a random output channel that a path reaches, and how many paths have it."""
    ends = [list(walks(width, nodes, len(nodes), c)) for c in range(nodes[-1].width)]
    ends = [paths for paths in ends if paths]
    most = max(length for paths in ends for _, length in paths)
    shares, counts = [0.0] * (most + 1), [0] * (most + 1)
    for paths in ends:
        for chance, length in paths:
            shares[length] += chance / len(ends)
            counts[length] += 1
    return shares, counts
