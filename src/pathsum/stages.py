"""Stages: joins that add to one stream of one size, as `layer1` … `layer4` of a ResNet do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from math import prod
from typing import Any

from .errors import LambdaError
from .graph import Join
from .sites import Branch

Stages = Sequence[int] | Sequence[str] | Callable[[Branch], Hashable]


def stages_of(nodes: Sequence[Any], joins: Sequence[Join]) -> list[int]:
    """The stage of each join of a recorded run.

    A join goes on with the stage of the last join that its shortcut comes through, if the number of values is the same
    and no weighted layer lies between; otherwise it starts one. Norms, activations and reshapes do not end a stage.
    """
    index = {join.node: k for k, join in enumerate(joins)}
    mask = sum(1 << node for node in index)
    stages: list[int] = []
    for join in joins:
        skip = join.skip_node
        before = (nodes[skip].ancestors & mask).bit_length() - 1
        size = prod(nodes[before].shape) if before >= 0 else -1
        goes_on = size == prod(join.shape) and not _weighted_between(nodes, before, skip)
        stages.append(stages[index[before]] if goes_on else 1 + max(stages, default=-1))
    return stages


def _weighted_between(nodes: Sequence[Any], start: int, end: int) -> bool:
    inside = nodes[end].ancestors
    return any(
        nodes[j].weighted and (inside >> j) & 1 and (nodes[j].ancestors >> start) & 1 for j in range(start + 1, end + 1)
    )


def labels_of(stages: Stages | None, branches: Sequence[Branch]) -> tuple[Hashable, ...]:
    """A stage label per branch: as found; or from counts, a text per branch, or a function of the branch."""
    if stages is None:
        return tuple(b.stage for b in branches)
    if callable(stages):
        return tuple(stages(b) for b in branches)
    given: list[Any] = list(stages)
    if given and all(isinstance(s, str) for s in given) and len(given) == len(branches):
        return tuple(given)
    if all(isinstance(s, int) and not isinstance(s, bool) and s > 0 for s in given) and sum(given) == len(branches):
        return tuple(k for k, count in enumerate(given) for _ in range(count))
    found = list(Counter(b.stage for b in branches).values())
    raise LambdaError(
        f"stages={given} does not divide {len(branches)} branches: give the number of branches of each stage in order "
        f"(found here: {found}), a text for each branch, or a function of a branch"
    )
