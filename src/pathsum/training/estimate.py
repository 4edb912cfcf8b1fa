"""How much memory a training step of a tower takes, before anything is allocated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from pathsum.nets.memory import Mode
from pathsum.nets.tower import SumOfPaths
from pathsum.training.memory import PeakMemory, saved_bytes

GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """Bytes of one training step under one memory mode.

    `activations` is what the forward pass leaves for the backward pass, `gradients` what there is at its end. They
    do not add up, since the ones go as the others come: `peak` is the most there is at once, tensors only. The
    workspace of convolutions, the allocator and the process itself are on top.
    """

    memory: Mode
    weights: int
    optimizer: int
    gradients: int
    activations: int
    peak: int

    def __repr__(self) -> str:
        parts = ", ".join(f"{k} {v / GIB:.2f}" for k, v in vars(self).items() if k != "memory")
        return f"Estimate({self.memory}, GiB: {parts})"


@dataclass(frozen=True)
class Part:
    """A piece of the network: bytes of its output, of what it keeps, and of what its own two passes need beside."""

    output: int
    saved: int
    passing: int


def estimate(
    net: SumOfPaths,
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype | None = None,
    states: int = 1,
    fused: bool = False,
) -> list[Estimate]:
    """Estimate the bytes of a training step of `net` on inputs of `shape`, batch first, under each memory mode.

    Weights, optimizer state (`states` tensors per weight: 1 for SGD with momentum, 2 for AdamW) and gradients
    (none where the update is `fused`) are counted; what encoder and block keep is read off a net of one block on
    the meta device, so nothing is allocated, and `net` may be there too:

    >>> from pathsum.nets import ResidualTower
    >>> with torch.device("meta"):
    ...     paper = ResidualTower(1000, 256)
    >>> estimate(paper, (64, 3, 32, 32))[1]
    Estimate(checkpoint, GiB: weights 4.39, optimizer 4.39, gradients 4.39, activations 0.43, peak 13.50)

    With k = √n segments of blocks that keep s bytes each, and maps of m bytes, plain keeps n·s, checkpointing
    (k − 1)·m + (n/k)·s, reversal (k + 3)·m + s; all keep what the encoder keeps. Gradients are taken to be freed before
    the next forward pass. `dtype` is that of weights and activations, the net's own by default.
    """
    depth = len(net.blocks)
    dtype = dtype or next(net.parameters()).dtype
    scale: Any = 1.0 if net.lam is None else "learned"
    with torch.device("meta"):
        twin = type(net)(**{**net.config, "depth": 1, "scale": scale}).to(dtype).train()
        x = torch.empty(shape, dtype=dtype)
        z = twin.encoder(x)
    stem, block = _part(twin.encoder, x), _part(_Block(twin), z)
    each = torch.empty((), dtype=dtype).element_size()
    trained = each * sum(p.numel() for p in net.parameters() if p.requires_grad)
    weights = sum((each if t.is_floating_point() else t.element_size()) * t.numel() for t in _tensors(net))
    gradients = 0 if fused else trained
    segments = math.isqrt(max(depth - 1, 0)) + 1
    longest = math.ceil(depth / segments) * block.saved
    reversing = min(depth, 1) * (block.saved + 2 * block.output)  # the block, what is sought, and what is left to find
    at_start = {
        "plain": depth * block.saved,
        "checkpoint": (segments - 1) * block.output + longest,
        "reverse": (segments + 1) * block.output + reversing,
    }
    at_end = {"plain": block.saved, "checkpoint": block.output + longest, "reverse": 2 * block.output + reversing}
    found = []
    for mode in get_args(Mode):
        activations = stem.saved + at_start[mode]
        most = max(
            activations + block.passing,
            stem.saved + at_end[mode] + block.passing + gradients,
            stem.saved + stem.passing + gradients,
        )
        total = weights + states * trained + most
        found.append(Estimate(mode, weights, states * trained, gradients, activations, total))
    return found


class _Block(nn.Module):
    """The first block of a tower, as a module."""

    def __init__(self, tower: SumOfPaths) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, z: Tensor) -> Tensor:
        return self.tower.block(0, z)


def _part(module: nn.Module, x: Tensor) -> Part:
    """Measure one piece on the meta device, as it runs inside a network: its input is kept by it, or not at all."""
    x = x.detach().requires_grad_(isinstance(module, _Block))
    own = list(_tensors(module))
    saved = saved_bytes(lambda: module(x), without=own)
    with PeakMemory(own) as memory:
        before = memory.now
        out = module(x)
        out.backward(torch.empty_like(out))
    gradients = sum(p.grad.numel() * p.element_size() for p in module.parameters() if p.grad is not None)
    module.zero_grad(set_to_none=True)
    return Part(out.untyped_storage().nbytes(), saved, max(memory.peak - before - saved - gradients, 0))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
