"""Take out what does nothing: blocks whose branches are all dead, the way back from `grow`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pathsum.anatomy import anatomy
from pathsum.care import untouched
from pathsum.errors import LambdaError, ProbeError
from pathsum.growing.blocks import Block
from pathsum.growing.carrying import carry
from pathsum.growing.remake import remake
from pathsum.growing.result import Shrinkage
from pathsum.growing.subject import TOLERANCE, Subject
from pathsum.growing.surgery import Slot
from pathsum.knobs import Knobs
from pathsum.running import Run
from pathsum.sites import Branch
from pathsum.training.contexts import mode
from pathsum.values import Output

__all__ = ["Shrinkage", "shrink"]


def shrink(
    net: nn.Module,
    *inputs: Any,
    tol: float = 0.0,
    optimizer: torch.optim.Optimizer | None = None,
    container: str | Sequence[str] | None = None,
    output: Output = None,
    **kwargs: Any,
) -> Shrinkage:
    """A copy of the net without its dead blocks; the net given stays as it was.

    A branch is dead where `‖λF(z)‖ ≤ tol·‖z‖` for every sample of `inputs`: with tol = 0, where it is exactly zero on
    all of them, so give inputs that stand for all. A block goes if all its branches are dead and its shortcuts are the
    identity. Where λ depends on n the last layers of the branches left are multiplied by λ_old/λ_new, as `grow` does:
    where no λ changes, or by powers of 2, `shrink` of a grown net is the old one bitwise, else to the rounding of
    these factors.

    The result reports each branch's contribution, what was removed, and by how much the output changed.
    Raises `ProbeError` where it changed by more than rounding though tol is 0.

    >>> import torch, pathsum as ps
    >>> net = ps.ResidualMLP(depth=2, width=8, in_features=3, scale=0.5, seed=0)
    >>> more = ps.grow(net, torch.ones(1, 3), depth=4)
    >>> less = ps.shrink(more.net, torch.ones(1, 3))
    >>> less.removed, less.depth, less.error
    (('blocks.2', 'blocks.3'), 2, 0.0)
    """
    if isinstance(tol, bool) or not isinstance(tol, int | float) or not 0 <= tol < math.inf:
        raise LambdaError(f"tol={tol!r}: give the size of λF(z) relative to z below which a branch is dead, 0 or more")
    subject = Subject(net, inputs, kwargs, container, output)
    sizes = contributions(subject)
    dead = {b.index for b in subject.anatomy.branches if sizes[b.index] <= tol}
    gone = [block for block in subject.blocks if all(b.index in dead and b.identity for b in block.branches)]
    made = remake(subject, layout_without(subject, gone), new="zero_last", lam=None, seed=None)
    error = subject.difference(made.net)
    if tol == 0 and not error <= TOLERANCE.get(subject.dtype, 3e-2):
        raise ProbeError(
            f"without {', '.join(repr(block.name) for block in gone)} the output differs by {error:.2g} (relative), "
            "though their branches are zero on these inputs: such a block does more than add its branches (a norm "
            "after the addition?); keep it, or name another container"
        )
    return Shrinkage(
        net=made.net,
        optimizer=None if optimizer is None else carry(optimizer, made),
        removed=tuple(block.name for block in gone),
        error=error,
        depth=len(subject.blocks) - len(gone),
        tol=float(tol),
        rows=tuple(row(b, subject.blocks, gone, sizes[b.index], b.index in dead) for b in subject.anatomy.branches),
    )


def layout_without(subject: Subject, gone: Sequence[Block]) -> dict[str, list[Slot]]:
    """What is left of each container that loses some."""
    out = {(block.container, block.key) for block in gone}
    return {
        container: [Slot(key) for key in subject.model.get_submodule(container)._modules if (container, key) not in out]
        for container in dict.fromkeys(block.container for block in gone)
    }


def row(branch: Branch, blocks: Sequence[Block], gone: Sequence[Block], size: float, dead: bool) -> dict[str, object]:
    """The table's line of a branch."""
    block = next((block for block in blocks if branch in block.branches), None)
    if block is not None and block in gone:
        fate = "removed"
    elif not dead:
        fate = "kept"
    elif block is None:
        fate = "kept: in no container"
    elif not branch.identity:
        fate = "kept: its shortcut is not the identity"
    else:
        fate = "kept: another branch of its block is not dead or changes the shape"
    return {
        "block": "" if block is None else block.name,
        "branch": branch.name,
        "contribution": size,
        "dead": dead,
        "fate": fate,
    }


class Weighing(Run):
    """A run that notes how large each branch is beside its skip: the greatest ratio over the samples."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sizes: dict[int, float] = {}

    def join(self, site: Branch, func: Any, args: tuple, kwargs: dict) -> Any:
        skip, branch = per_sample(args[site.skip]), per_sample(args[site.branch])
        factor = kwargs.get("alpha", 1) if self.lam is None else self.lam[site.index]
        small = torch.finfo(skip.dtype).tiny
        ratio = branch.mul(abs(float(factor))).div(skip.clamp_min(small)).max()
        self.sizes[site.index] = float(ratio)
        return super().join(site, func, args, kwargs)


def per_sample(t: Tensor) -> Tensor:
    """The norm of each sample, in float64."""
    return t.detach().double().reshape(len(t) if t.ndim > 1 else 1, -1).norm(dim=1)


def contributions(subject: Subject) -> list[float]:
    """‖λF(z)‖/‖z‖ of each branch in eval mode, at most over the samples."""
    with mode(subject.net, training=False), torch.no_grad(), untouched(subject.net):
        found = anatomy(subject.model, *subject.inputs, **subject.kwargs)
        net = Knobs(subject.model, found)
        lam = subject.knobs.in_force() if subject.knobs is not None else None
        run = Weighing(found, net.check_lam(lam), None)
        with run:
            subject.model(*subject.inputs, **subject.kwargs)
        run.finish()
    return [run.sizes[b.index] for b in found.branches]
