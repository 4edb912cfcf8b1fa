"""Which part of the old net each part of the new one is, or is made like."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from pathsum.errors import ProbeError
from pathsum.growing.blocks import Child, by_child
from pathsum.growing.scales import Source
from pathsum.growing.subject import Subject
from pathsum.growing.surgery import Slot
from pathsum.sites import Anatomy


def match(
    subject: Subject, model: nn.Module, found: Anatomy, containers: Collection[str], origins: dict[Child, Slot]
) -> list[Source]:
    """The old branch that each new one is, or is made like, by the children they lie in; the others go by order."""
    old = by_child(subject.model, subject.anatomy, containers)
    now = by_child(model, found, containers)
    sources: dict[int, Source] = {}
    for child, branches in now.items():
        slot = Slot("") if child is None else origins.get(child, Slot(child[1]))
        before = old.get(None if child is None else (child[0], slot.key), [])
        if len(before) != len(branches):
            where = f"its block '{'.'.join(child)}'" if child else "it"
            raise ProbeError(
                f"with other blocks {where} has {len(branches)} residual branches in place of {len(before)}: the "
                "model's forward depends on which block it is in"
            )
        sources |= {b.index: Source(a.index, slot.new) for a, b in zip(before, branches, strict=True)}
    missing = [".".join(c) for c, slot in origins.items() if c not in now and old.get((c[0], slot.key))]
    if missing:
        raise ProbeError(
            f"{type(model).__name__} does not run its block '{missing[0]}': its forward does not go through all of "
            f"{missing[0].rpartition('.')[0]!r}"
        )
    return [sources[b.index] for b in found.branches]


def likenesses(old: nn.Module, new: nn.Module, origins: dict[Child, Slot]) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Each parameter of a new block, with the old one that it is made like."""
    pairs = []
    for (container, key), slot in origins.items():
        if slot.new:
            like = dict(old.get_submodule(container)._modules[slot.key].named_parameters())  # type: ignore[union-attr]
            made = new.get_submodule(container)._modules[key]
            pairs += [(p, like[name]) for name, p in made.named_parameters()]  # type: ignore[union-attr]
    return pairs
