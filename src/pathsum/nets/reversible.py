"""Gradients without kept activations: a contractive block y = z + λF(z) is run backwards, z = y − λF(z).

The fixed-point iteration z ← z + (y − step(z)), which is z ← y − λF(z), gains a factor λ·Lip(F) each time. The
reverse of a chain magnifies errors by ∏ 1/(1 − λ Lip F): at λ = 1/√n that is e^(Lip F) over √n blocks, but
e^(√n Lip F) over all n, more than any precision has. So the activation at every √n-th block, an anchor, is kept;
reversal starts at one and is checked at the next, and where it missed, the segment is computed again forwards.

Reference: Behrmann et al. 2019, "Invertible residual networks" (arXiv 1811.00995), Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pathsum.allocation import give_back
from pathsum.errors import ModeError
from pathsum.nets.checkpointing import Frozen, Step, as_steps, checkpointed, run, split

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-11}  # about 1000 roundings: e^(Lip F) of them, and √n blocks


@dataclass
class Reversal:
    """How reversal went so far; errors are relative 2-norms.

    `segments` and `fallbacks` count the segments that were run backwards and those that had to be computed forwards
    again, `blocks` the blocks reversed and `iterations` the evaluations this took. `worst_residual` is the largest
    ‖y − step(z)‖/‖y‖ accepted for a block, `worst_error` the largest mismatch accepted at an anchor. A segment in
    `kept` failed before: it is checkpointed from then on, without trying.
    """

    segments: int = 0
    fallbacks: int = 0
    blocks: int = 0
    iterations: int = 0
    worst_residual: float = 0.0
    worst_error: float = 0.0
    kept: set[int] = field(default_factory=set)


class NotContractiveError(Exception):
    """Internal: a block's iteration did not converge, or the reversed segment missed its anchor."""


def reversible(
    blocks: Sequence[Step] | Sequence[nn.Module] | nn.Sequential | nn.ModuleList,
    x: Tensor,
    *,
    segments: int | None = None,
    tolerance: float | None = None,
    max_iterations: int = 50,
    record: Reversal | None = None,
) -> Tensor:
    """`blocks[n-1](… blocks[0](x))`; for the gradient only √n anchors are kept, the rest is found by reversal.

    Each block is a map z → z + λF(z) of its whole input, skip included. Where λF is no contraction, or is random,
    its segment is computed again from the anchor before it, as by `checkpointed`. Gradients differ from the plain
    ones by about `tolerance` at most (default 1e-4 in float32, 1e-11 in float64), relative to their norm, times
    how fast they change; a ReLU that the error carries over its kink changes by a whole unit. Costs some 5 to 15
    evaluations of a block for each, memory √n activations and one block. BatchNorm in train mode is covered,
    since a batch is reversed as a whole; buffers are updated once. First derivatives only.

    Raises `ModeError` for activations in half precision, which forget z at each addition.
    """
    if x.dtype not in TOLERANCE:
        raise ModeError(
            f"reversal of activations in {x.dtype} is not possible: each addition rounds z by more than the iteration "
            "can recover; use memory 'checkpoint', or float32"
        )
    limit = TOLERANCE[x.dtype] if tolerance is None else tolerance
    record = Reversal() if record is None else record
    for number, part in enumerate(split(as_steps(blocks), segments)):
        if part and number in record.kept:
            x = checkpointed([_joined(part), _NOTHING] if segments is None else part, x)
        elif part:
            around = _surroundings(x.device)
            work = Work(part, number, segments is not None, limit, max_iterations, record, Frozen(part), *around)
            x = Segment.apply(work, x, *work.parameters)
    return x


@dataclass
class Work:
    """A segment, and what its backward pass needs beside tensors."""

    steps: list[Step]
    number: int
    long: bool  # maybe: more blocks than √n
    tolerance: float
    max_iterations: int
    record: Reversal
    frozen: Frozen
    autocast: list[dict[str, Any]]
    random: list[tuple[torch.Generator, Tensor]]

    @property
    def parameters(self) -> list[Tensor]:
        """Every parameter of the segment that wants a gradient, once."""
        return list({id(p): p for _, _, p in self.frozen.parameters if p.requires_grad}.values())

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Random state, autocast, parameters and buffers as they were in the forward pass."""
        with ExitStack() as stack:
            for generator, state in self.random:
                stack.callback(generator.set_state, generator.get_state())
                generator.set_state(state)
            for options in self.autocast:
                stack.enter_context(torch.autocast(**options))
            stack.enter_context(self.frozen)
            yield


class Segment(torch.autograd.Function):
    """The blocks between two anchors."""

    @staticmethod
    def forward(ctx: Any, work: Work, z: Tensor, *parameters: Tensor) -> Tensor:
        with ExitStack() as stack:
            for options in work.autocast:  # weights cast here without a graph must not stay in its cache
                stack.enter_context(torch.autocast(**options))
            y = run(work.steps, z)
        ctx.work = work
        ctx.save_for_backward(z, y, *parameters)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        work: Work = ctx.work
        z, y, *parameters = ctx.saved_tensors
        if z.is_cpu:
            give_back()
        try:
            with work.repeated():
                found = _reverse(work, z, y, grad, parameters)
            work.record.segments += 1
        except NotContractiveError:
            work.record.fallbacks += 1
            work.record.kept.add(work.number)
            with work.repeated():
                found = _forwards(work, z, grad, parameters)
        return None, *found


def _reverse(work: Work, start: Tensor, y: Tensor, grad: Tensor, parameters: list[Tensor]) -> list[Tensor | None]:
    """Gradients of the segment's input and parameters, block by block from its output y."""
    totals: list[Tensor | None] = [None] * len(parameters)
    place = {id(p): i for i, p in enumerate(parameters)}
    for step in reversed(work.steps):
        z = _solve(work, step, y).requires_grad_()
        wanted = [p for m in step.modules for p in m._parameters.values() if p is not None and p.requires_grad]
        with torch.enable_grad():
            out = step.call(z)
        first, *rest = torch.autograd.grad(out, [z, *wanted], grad, allow_unused=True)
        grad = torch.zeros_like(z) if first is None else first
        for p, g in zip(wanted, rest, strict=True):
            i, old = place[id(p)], totals[place[id(p)]]
            totals[i] = g if old is None or g is None else old + g
        y = z.detach()
    error = _relative(y - start, start)
    if not error <= work.tolerance:
        raise NotContractiveError
    work.record.worst_error = max(work.record.worst_error, error)
    return [grad, *totals]


@torch.no_grad()
def _solve(work: Work, step: Step, y: Tensor) -> Tensor:
    """z with step(z) = y, to rounding, by fixed-point iteration."""
    z, last, floor = y, math.inf, 4 * torch.finfo(y.dtype).eps
    for _ in range(work.max_iterations):
        work.record.iterations += 1
        rest = y - step.call(z)
        error = _relative(rest, y)
        if not error < last:  # at the floor of rounding, or no contraction
            break
        z, last = z + rest, error
        if error <= floor:
            break
    if not last <= work.tolerance:
        raise NotContractiveError
    work.record.blocks += 1
    work.record.worst_residual = max(work.record.worst_residual, last)
    return z


def _forwards(work: Work, start: Tensor, grad: Tensor, parameters: list[Tensor]) -> list[Tensor | None]:
    """The same gradients with the segment computed again from its anchor."""
    with torch.enable_grad():
        z = start.detach().requires_grad_()
        out = checkpointed(work.steps, z) if work.long else run(work.steps, z)
    return list(torch.autograd.grad(out, [z, *parameters], grad, allow_unused=True))


def _joined(part: list[Step]) -> Step:
    """A segment as one step."""
    return Step(lambda z: run(part, z), tuple(m for step in part for m in step.modules))


_NOTHING = Step(lambda z: z, ())  # `checkpointed` leaves the last segment plain


def _relative(difference: Tensor, whole: Tensor) -> float:
    """‖difference‖/‖whole‖, where 0/0 is 0."""
    part, size = torch.linalg.vector_norm(difference).item(), torch.linalg.vector_norm(whole).item()
    return part / size if size else math.inf if part else 0.0


def _surroundings(device: torch.device) -> tuple[list[dict[str, Any]], list[tuple[torch.Generator, Tensor]]]:
    """Autocast as it is set, without its cache, and the random state, to be repeated in the backward pass."""
    generators = [torch.default_generator]
    kinds = {"cpu", device.type}
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    options = [
        {
            "device_type": kind,
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
            "cache_enabled": False,
        }
        for kind in sorted(kinds)
        if torch.amp.is_autocast_available(kind)
    ]
    return options, [(g, g.get_state()) for g in generators]
