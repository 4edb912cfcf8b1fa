"""Activation checkpointing: keep √n of the activations of n blocks, and compute the others again for the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pathsum.allocation import give_back
from pathsum.errors import ModeError, PathsumError


@dataclass(frozen=True)
class Step:
    """One block: a function of the activation, and the modules whose own parameters and buffers it reads."""

    call: Callable[[Tensor], Tensor]
    modules: tuple[nn.Module, ...]


class Frozen:
    """The parameters and buffers of some modules as they are now; a context puts them back for a second run.

    The second run must not count: BatchNorm would update its running statistics twice. So it works on copies of
    the buffers, which are also those of before the first run, for modules whose result depends on them.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        modules = {id(m): m for step in steps for m in step.modules}.values()
        self.parameters = [(m, name, p) for m in modules for name, p in m._parameters.items() if p is not None]
        self.buffers = [(m, name, _copy(b)) for m in modules for name, b in m._buffers.items() if b is not None]
        self.versions = [p._version for _, _, p in self.parameters]
        self.before: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []

    def __enter__(self) -> None:
        if any(p._version != old for (_, _, p), old in zip(self.parameters, self.versions, strict=True)):
            raise ModeError(
                "a weight was changed in place between the forward and the backward pass, and the activations that "
                "are computed again would be others: call backward() before optimizer.step()"
            )
        for module, name, parameter in self.parameters:
            self._put(module._parameters, name, parameter)
        for module, name, buffer in self.buffers:
            self._put(module._buffers, name, _copy(buffer))

    def __exit__(self, *_: object) -> None:
        while self.before:
            place, name, tensor = self.before.pop()
            place[name] = tensor

    def _put(self, place: dict[str, Any], name: str, tensor: Tensor) -> None:
        self.before.append((place, name, place[name]))
        place[name] = tensor


def checkpointed(
    blocks: Sequence[Step] | Sequence[nn.Module] | nn.Sequential | nn.ModuleList,
    x: Tensor,
    *,
    segments: int | None = None,
) -> Tensor:
    """`blocks[n-1](… blocks[0](x))`, keeping for the gradient what enters each of √n segments.

    Each segment but the last runs once more in the backward pass, so a block's activations exist only while its
    segment is differentiated: about 1/√n of the memory, a third more time. Result and gradients are bitwise those
    of the plain loop on the CPU; random numbers and autocast are repeated, buffers (the running statistics of
    BatchNorm) are updated once. Forward hooks of the blocks run twice. `segments` other than √n: from 1 to n.

    >>> blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(9))
    >>> x = torch.randn(2, 3, requires_grad=True)
    >>> torch.equal(checkpointed(blocks, x), nn.Sequential(*blocks)(x))
    True

    Reference: Chen et al. 2016, "Training deep nets with sublinear memory cost" (arXiv 1604.06174).
    Raises `PathsumError` for a number of segments below 1, `ModeError` in the backward pass where a weight was
    changed since the forward pass.
    """
    *parts, last = split(as_steps(blocks), segments)
    for part in parts:
        frozen = Frozen(part)
        x = checkpoint(partial(_segment, part), x, use_reentrant=False, context_fn=partial(_contexts, frozen))
    return run(last, x)  # the first to be differentiated: its activations would come back at once


def as_steps(blocks: Any) -> list[Step]:
    """Blocks given as modules, or as steps, as steps."""
    return [b if isinstance(b, Step) else Step(b, tuple(b.modules())) for b in blocks]


def split(steps: list[Step], segments: int | None) -> list[list[Step]]:
    """Cut n steps into √n segments (or so many), of lengths that differ by one at most; at least one, maybe empty."""
    if segments is not None and (isinstance(segments, bool) or not isinstance(segments, int) or segments < 1):
        raise PathsumError(f"segments={segments!r} is not possible: give a whole number ≥ 1, or None for √n")
    depth = len(steps)
    wanted = math.isqrt(max(depth - 1, 0)) + 1 if segments is None else min(segments, max(depth, 1))
    edges = [depth * i // wanted for i in range(wanted + 1)]
    return [steps[a:b] for a, b in pairwise(edges)]


def run(steps: Sequence[Step], x: Tensor) -> Tensor:
    """The plain loop."""
    for step in steps:
        x = step.call(x)
    return x


def _segment(steps: Sequence[Step], x: Tensor) -> Tensor:
    if x.is_cpu:
        give_back()  # what was freed before, in sizes that this segment may not ask for
    return run(steps, x)


def _contexts(frozen: Frozen) -> tuple[Any, Frozen]:
    """The contexts of the first run and of the second, as torch asks for them."""
    return nullcontext(), frozen


def _copy(buffer: Tensor) -> Tensor:
    return torch.clone(buffer.detach())
