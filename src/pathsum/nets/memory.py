"""How much of a chain of blocks is kept for the gradient: all, √n activations, or what reversal cannot find."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from pathsum.allocation import freed_memory
from pathsum.errors import PathsumError
from pathsum.nets.checkpointing import Step, checkpointed, run, split
from pathsum.nets.reversible import Reversal, reversible

if TYPE_CHECKING:
    from pathsum.nets.tower import SumOfPaths

Mode = Literal["plain", "checkpoint", "reverse"]


@dataclass(frozen=True)
class Memory:
    """What a tower keeps of its activations: `tower.memory = Memory("checkpoint")`, or just `"checkpoint"`.

    mode: `"plain"` keeps all of them, `"checkpoint"` what enters each of √n segments (`checkpointed`), `"reverse"`
        the same but finds the others by reversal (`reversible`).
    segments: another number of segments than √n. tolerance, max_iterations: of reversal; its errors and
        fallbacks are in `record`.

    Raises `PathsumError` for an unknown mode or a number that is not possible.
    """

    mode: Mode = "plain"
    segments: int | None = None
    tolerance: float | None = None
    max_iterations: int = 50
    record: Reversal = field(default_factory=Reversal, compare=False)

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise PathsumError(f"memory={self.mode!r} is unknown: choose one of {', '.join(map(repr, get_args(Mode)))}")
        split([], self.segments)
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise PathsumError(f"tolerance={self.tolerance} is not possible: give a relative error between 0 and 1")
        if self.max_iterations < 1:
            raise PathsumError(f"max_iterations={self.max_iterations} is not possible: give 1 or more")

    def chain(self, steps: list[Step], z: Tensor) -> Tensor:
        """Run z through the steps.

        Plainly where no gradient is asked for, and where the calls are watched or transformed (knobs, torch.func,
        torch.compile), because a second run would be no part of that.
        """
        if self.mode == "plain" or not torch.is_grad_enabled() or _watched():
            return run(steps, z)
        if self.mode == "checkpoint":
            return checkpointed(steps, z, segments=self.segments)
        return reversible(
            steps,
            z,
            segments=self.segments,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
            record=self.record,
        )


def _watched() -> bool:
    """Whether something sees or changes the calls as they are made, apart from a default device."""
    watching = any(not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())
    return watching or torch._C._functorch.peek_interpreter_stack() is not None or torch.compiler.is_compiling()


def keeps_activations(model: nn.Module) -> bool:
    """Whether no tower in the model saves memory."""
    return all(tower.memory.mode == "plain" for tower in towers_in(model))


def towers_in(model: nn.Module) -> list[SumOfPaths]:
    """The model itself and what it holds, as far as they are towers."""
    from pathsum.nets.tower import SumOfPaths

    return [module for module in model.modules() if isinstance(module, SumOfPaths)]


@contextmanager
def saving(model: nn.Module, memory: Mode | Memory) -> Iterator[Reversal]:
    """Let every tower in `model` save memory for a while; yields the record of reversal.

    >>> from pathsum.nets import ResidualMLP
    >>> net = ResidualMLP(9, 4, in_features=2, seed=0)
    >>> with saving(net, "checkpoint"):
    ...     net(torch.ones(1, 2)).sum().backward()
    >>> net.memory.mode
    'plain'

    Raises `PathsumError` where the model holds no tower.
    """
    chosen = memory if isinstance(memory, Memory) else Memory(memory)
    towers = towers_in(model)
    if not towers and chosen.mode != "plain":
        raise PathsumError(
            f"memory={chosen.mode!r}: {type(model).__name__} holds no tower of pathsum; in its forward, run its "
            "blocks with pathsum.nets.checkpointed(blocks, x)"
        )
    before = [tower.memory for tower in towers]
    try:
        for tower in towers:
            tower.memory = chosen
        with nullcontext() if chosen.mode == "plain" else freed_memory("returned"):
            yield chosen.record
    finally:
        for tower, old in zip(towers, before, strict=True):
            tower.memory = old
