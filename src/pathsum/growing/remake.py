"""A net with other blocks that computes what the old one does: the steps that growing and shrinking share."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from pathsum.anatomy import anatomy
from pathsum.errors import ProbeError
from pathsum.growing.blocks import Block, Child, blocks_of, ways_to
from pathsum.growing.scales import Renewed, Source, renew, rule_at, settle
from pathsum.growing.subject import Subject
from pathsum.growing.surgery import Layout, Slot, paths_of, rearrange
from pathsum.growing.weights import New, begin, factors_of, multiply, zero_ends
from pathsum.knobs import Knobs, own_scale
from pathsum.nets.tower import SumOfPaths
from pathsum.sites import Anatomy, Branch
from pathsum.training.contexts import mode

@dataclass(frozen=True)
class Made:
    """The new net, and how its parts correspond to the old one's."""

    net: nn.Module
    old_parameters: tuple[int, ...]  # their ids
    parameters: dict[int, nn.Parameter]  # id of an old parameter -> its counterpart, if it still has one
    factors: list[tuple[nn.Parameter, int | None, float]]  # new parameter (entry) that was multiplied
    renewed: tuple[Renewed, ...]  # parameters of λ
    likenesses: list[tuple[nn.Parameter, nn.Parameter]]  # new parameter, the old one it is made like
    new_blocks: tuple[str, ...]
    blocks: tuple[Block, ...]
    branches: tuple[str, ...]  # their names
    sources: tuple[Source, ...]  # of each branch
    lam: tuple[float, ...]  # of each branch
    changes: tuple[float, ...]  # factor on the last layer of each branch


def remake(subject: Subject, layout: Layout, *, new: New, lam: float | None, seed: int | None) -> Made:
    """A copy of the net with other children in its containers, each old branch's λ·F as it was, new ones zero."""
    memo: dict[int, Any] = {}
    model = copy.deepcopy(subject.model, memo)
    origins = rearrange(model, layout)
    names = paths_of(origins, new=True)
    renewed: list[Renewed] = []
    if isinstance(model, SumOfPaths):
        slots = [Source(int(slot.key), slot.new) for slot in layout["blocks"]]
        settled = settle(model, slots, None if subject.set_by_knobs else lam)
        renewed += [replace(settled, old=subject.model.lam)] if settled is not None else []
    begin(model, names, new, seed)
    try:
        found = subject.look(model)
    except (RuntimeError, IndexError, KeyError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ProbeError(f"{type(model).__name__} does not run with blocks {', '.join(names)} ({why})") from error
    sources = match(subject, model, found, layout, origins)
    inside = [(b, name) for b, s in zip(found.branches, sources, strict=True) if s.new for name in names if holds(name, b, found)]
    zero_ends(model, inside)
    net, values, before, part = scaled(subject, model, found, sources, lam)
    renewed += [part] if part is not None else []
    kept = [(b, old, value) for b, s, old, value in zip(found.branches, sources, before, values, strict=True) if not s.new]
    factors = factors_of([b for b, _, _ in kept], [old for _, old, _ in kept], [value for _, _, value in kept])
    multiply(model, factors)
    parameters = {id(p): memo[id(p)] for p in subject.model.parameters()} | {id(r.old): r.new for r in renewed}
    left = {id(p) for p in net.parameters()}
    return Made(
        net=net,
        old_parameters=tuple(parameters),
        parameters={i: p for i, p in parameters.items() if id(p) in left},
        factors=[(model.get_parameter(e.parameter), e.entry, c) for e, c in factors.items()],
        renewed=tuple(renewed),
        likenesses=likenesses(subject.model, model, origins),
        new_blocks=tuple(names),
        blocks=tuple(blocks_of(model, found, [c for c in {b.container: 0 for b in subject.blocks} if holding(model, found, c)])),
        branches=tuple(b.name for b in found.branches),
        sources=tuple(sources),
        lam=tuple(values),
        changes=tuple(1.0 if s.new or old == v else old / v for s, old, v in zip(sources, before, values, strict=True)),
    )


def scaled(
    subject: Subject, model: nn.Module, found: Anatomy, sources: Sequence[Source], lam: float | None
) -> tuple[nn.Module, list[float], list[float], Renewed | None]:
    """The model, under knobs where the old one was; λ of each branch now, and what λ its source had."""
    knobs = subject.knobs
    if knobs is None or not subject.set_by_knobs or knobs.rule is None:
        own = scales_of(subject.model, subject.anatomy)
        net = model if knobs is None else again(subject, model, knobs)
        return net, scales_of(model, found), [own[s.index] for s in sources], None
    now = knobs.lam.detach().tolist()
    net = again(subject, model, knobs)
    if not sources:
        return net, [], [], None
    labels = None if knobs.stage_labels is None else [knobs.stage_labels[s.index] for s in sources]
    rule, values = rule_at(knobs.rule, now, sources, lam, labels)
    if rule.per == "stage" and labels is not None:
        net.rescale(rule, stages=lambda b: labels[b.index])
    else:
        net.rescale(rule, per="net")
    part = None
    if isinstance(net.lam_values, nn.Parameter) and isinstance(knobs.lam_values, nn.Parameter):
        part = renew(knobs.lam_values, net.lam_values, values, sources)
    return net, values, [now[s.index] for s in sources], part


def again(subject: Subject, model: nn.Module, knobs: Knobs) -> Knobs:
    """Knobs on the new model, in the mode of the old ones."""
    with mode(model, training=False):
        made = Knobs(model, anatomy(model, *subject.inputs, **subject.kwargs), knobs.output)
    made.training = knobs.training
    return made


def scales_of(model: nn.Module, found: Anatomy) -> list[float]:
    """The model's own λ."""
    return list(model.scales) if isinstance(model, SumOfPaths) else [own_scale(model, b) for b in found.branches]


def match(
    subject: Subject, model: nn.Module, found: Anatomy, layout: Layout, origins: dict[Child, Slot]
) -> list[Source]:
    """The old branch that each new one is, or is made like, by the children they lie in; the others go by order."""
    old = by_child(subject.model, subject.anatomy, layout)
    now = by_child(model, found, layout)
    sources: dict[int, Source] = {}
    for child, branches in now.items():
        slot = origins[child] if child is not None else Slot("")
        before = old.get(None if child is None else (child[0], slot.key), [])
        if len(before) != len(branches):
            where = f"its block '{'.'.join(child)}'" if child else "it"
            raise ProbeError(
                f"with other blocks {where} has {len(branches)} residual branches in place of {len(before)}: the model's "
                "forward depends on which block it is in"
            )
        sources |= {b.index: Source(a.index, slot.new) for a, b in zip(before, branches, strict=True)}
    missing = [".".join(c) for c, slot in origins.items() if c not in now and old.get((c[0], slot.key))]
    if missing:
        raise ProbeError(
            f"{type(model).__name__} does not run its block '{missing[0]}': its forward does not go through all of "
            f"{missing[0].rpartition('.')[0]!r}"
        )
    return [sources[b.index] for b in found.branches]


def by_child(model: nn.Module, found: Anatomy, layout: Layout) -> dict[Child | None, list[Branch]]:
    """The branches of each child of the containers in question; None: of no such child."""
    groups: dict[Child | None, list[Branch]] = defaultdict(list)
    for b in found.branches:
        groups[next((c for c in ways_to(model, found, b) if c[0] in layout), None)].append(b)
    return groups


def holds(name: str, branch: Branch, found: Anatomy) -> bool:
    """Whether a branch lies in the module of that name."""
    adds = found.steps[branch.step].module
    parts = [adds, *branch.modules]
    return any(part == name or part.startswith(f"{name}.") for part in parts)


def holding(model: nn.Module, found: Anatomy, container: str) -> bool:
    return any(c == container for b in found.branches for c, _ in ways_to(model, found, b))


def likenesses(old: nn.Module, new: nn.Module, origins: dict[Child, Slot]) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Each parameter of a new block, with the old one that it is made like."""
    pairs = []
    for (container, key), slot in origins.items():
        if slot.new:
            like = dict(old.get_submodule(container)._modules[slot.key].named_parameters())  # type: ignore[union-attr]
            made = new.get_submodule(container)._modules[key]
            pairs += [(p, like[name]) for name, p in made.named_parameters()]  # type: ignore[union-attr]
    return pairs
