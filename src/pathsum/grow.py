"""Depth embedding (Dherin & Munn 2025, Appendix C): a deeper net that computes what the trained shallower one does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pathsum.errors import PathsumError, ProbeError
from pathsum.growing.carrying import carry
from pathsum.growing.places import Place, Where, count_of, places
from pathsum.growing.remake import Made, remake
from pathsum.growing.result import Growth
from pathsum.growing.subject import TOLERANCE, Subject
from pathsum.growing.surgery import Slot
from pathsum.growing.weights import NEW, New
from pathsum.values import Output

__all__ = ["Growth", "grow"]


def grow(
    net: nn.Module,
    *inputs: Any,
    depth: int | None = None,
    insert: int | None = None,
    where: Where = "end",
    new: New = "zero_last",
    lam: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    container: str | Sequence[str] | None = None,
    seed: int | None = None,
    output: Output = None,
    **kwargs: Any,
) -> Growth:
    """A deeper copy of a trained net with the same outputs; the net given stays as it was.

    `F = 0` leaves `z + λF(z) = z`, so a net of depth n lies in every deeper one: same function, same loss,
    `Z_{n−1} ↪ Z_n`. Where λ depends on n it lies there with the last layers of old branches (weight and bias, or the
    last norm's) multiplied by λ_old/λ_new. Works on the towers, on any model whose blocks are children of a
    `ModuleList` or `Sequential`, and on `knobs` of either: fixed rules for λ are applied at the new depth, learned
    ones keep the old values.

    depth: blocks in all (or insert: how many more). A block is a child of the container: a transformer layer, with
        its two branches, or a residual block; those that change the shape are counted, but never copied.
    where: "end", "interleaved" (evenly), "stage" (shared among the stages, at the end of each), or names of blocks to
        put one after.
    new: new blocks are copies of a neighbor, whose last linear maps are 0 ("zero_last"; they get a gradient at once,
        the others after the first step), or are drawn anew but for these ("fresh": PyTorch's layers, and the towers'
        own initialization, with `seed`). With "zero" every parameter is 0, as in the paper: for branches of two layers
        and more with φ(0) = 0 that is a point which gradient descent cannot leave, but for a last bias.
    lam: where new learned λ start, or those of a list (default: as the rule starts, else the mean of the others').
    optimizer: one on `net`; the result has its like on the new net, with its memory (see `growing.carrying`).
    container: name of the ModuleList or Sequential, or several, where the choice made is not what is wanted.

    Costs a copy of the net and five forward passes, in eval mode. Raises `ProbeError` where the outputs on `inputs`
    differ (a norm after the addition, a forward that depends on the block's number), `PathsumError` for blocks that
    cannot be copied.

    >>> import torch, pathsum as ps
    >>> net = ps.ResidualMLP(depth=2, width=8, in_features=3, scale="1/n", seed=0)
    >>> more = ps.grow(net, torch.ones(1, 3), depth=4, where="interleaved")
    >>> more.new_blocks, more.net.scales, more.error < 1e-6
    (('blocks.1', 'blocks.3'), (0.25, 0.25, 0.25, 0.25), True)
    """
    if new not in NEW:
        raise PathsumError(f"new={new!r}: give one of {', '.join(map(repr, NEW))}")
    subject = Subject(net, inputs, kwargs, container, output)
    asked = places(subject.blocks, count_of(depth, insert, where, len(subject.blocks)), where, zero=new == "zero")
    made = remake(subject, layout_with(subject, asked), new=new, lam=lam, seed=seed)
    error = subject.difference(made.net)
    if not error <= TOLERANCE.get(subject.dtype, 3e-2):
        raise ProbeError(excuse(subject, asked, error))
    return Growth(
        net=made.net,
        optimizer=None if optimizer is None else carry(optimizer, made),
        new_blocks=made.new_blocks,
        error=error,
        depth=len(made.blocks),
        rows=rows(made),
    )


def layout_with(subject: Subject, asked: Sequence[Place]) -> dict[str, list[Slot]]:
    """The children of each container that gets some: the old ones, each followed by the new ones there."""
    layout: dict[str, list[Slot]] = {}
    for container in dict.fromkeys(place.after.container for place in asked):
        layout[container] = []
        for key in subject.model.get_submodule(container)._modules:
            here = [p.like.key for p in asked if (p.after.container, p.after.key) == (container, key)]
            layout[container] += [Slot(key), *(Slot(like, new=True) for like in here)]
    return layout


def rows(made: Made) -> tuple[dict[str, object], ...]:
    """The table's lines."""
    block = {b.index: each.name for each in made.blocks for b in each.branches}
    return tuple(
        {"block": block.get(i, ""), "branch": name, "new": source.new, "lam": lam, "factor": change}
        for i, (name, source, lam, change) in enumerate(
            zip(made.branches, made.sources, made.lam, made.changes, strict=True)
        )
    )


def excuse(subject: Subject, asked: Sequence[Place], error: float) -> str:
    """Why outputs may differ though the new branches are zero."""
    likes = {place.like.name: place.like for place in asked}
    after = {name: kind for name, block in likes.items() for b in block.branches for kind in b.after}
    hint = "; ".join(f"{kind} follows an addition of '{name}'" for name, kind in after.items())
    return (
        f"the grown {type(subject.model).__name__} differs by {error:.2g} (relative) on these inputs, so it was not "
        f"made: with zero branches a copy of {', '.join(map(repr, likes))} is not the identity"
        + (f" ({hint})" if hint else "")
        + ", or the forward does more at some blocks; name others in where, or another container"
    )
