"""A net with other blocks that computes what the old one does: the steps that growing and shrinking share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from pathsum.anatomy import anatomy
from pathsum.errors import ProbeError
from pathsum.growing.blocks import Block, by_child
from pathsum.growing.matching import likenesses, match
from pathsum.growing.scales import Renewed, Source, renew, rule_at, settle
from pathsum.growing.subject import Subject
from pathsum.growing.surgery import Layout, paths_of, rearrange
from pathsum.growing.weights import New, begin, factors_of, multiply, zero_ends
from pathsum.knobs import Knobs, own_scale
from pathsum.nets.tower import SumOfPaths
from pathsum.sites import Anatomy
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
    containers = {b.container for b in subject.blocks}
    origins = rearrange(model, layout, containers)
    names = paths_of(origins, new=True)
    renewed: list[Renewed] = []
    if isinstance(model, SumOfPaths) and "blocks" in layout:
        slots = [Source(int(slot.key), slot.new) for slot in layout["blocks"]]
        settled = settle(model, slots, None if subject.set_by_knobs else lam)
        if settled is not None and isinstance(subject.model.lam, nn.Parameter):
            renewed.append(replace(settled, old=subject.model.lam))
    begin(model, names, new, seed)
    try:
        found = subject.look(model)
    except (RuntimeError, IndexError, KeyError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ProbeError(f"{type(model).__name__} does not run with blocks {', '.join(names)} ({why})") from error
    sources = match(subject, model, found, containers, origins)
    blocks = [Block(*child, tuple(held)) for child, held in by_child(model, found, containers).items() if child]
    zero_ends(model, [(b, block.name) for block in blocks if block.name in names for b in block.branches])
    net, values, before, part = scaled(subject, model, found, sources, lam)
    renewed += [part] if part is not None else []
    kept = [i for i, source in enumerate(sources) if not source.new]
    factors = factors_of([found.branches[i] for i in kept], [before[i] for i in kept], [values[i] for i in kept])
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
        blocks=tuple(blocks),
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
