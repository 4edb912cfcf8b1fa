"""Write λ into the weights: a plain model, verified equal, with no cost left at inference."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from .care import check_same, untouched
from .errors import PathsumError
from .knobs import Knobs, own_scale
from .sites import Branch, End

# Each weight is rounded once more; a deep network carries its roundings on, as it does its own.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def fold(net: Knobs, inputs: tuple, kwargs: dict[str, Any]) -> nn.Module:
    """A copy of `net.model` in which what ends branch i is multiplied by λᵢ over the model's own scale."""
    model = copy.deepcopy(net.model)
    if net.branches:
        changes = changes_of(net, own_scales(net, inputs, kwargs), [float(v) for v in net.lam.tolist()])
        with torch.no_grad():
            for end, (change, value) in changes.items():
                place = model.get_parameter(end.parameter)
                entry = place if end.entry is None else place.view(-1)[end.entry]
                entry.fill_(value) if change == "set" else entry.mul_(value)
    if inputs or kwargs:
        check_same(net, model, inputs, kwargs, TOLERANCE, "the folded model")
    return model


def own_scales(net: Knobs, inputs: tuple, kwargs: dict[str, Any]) -> list[float]:
    """The model's own scale of each branch: as a run on the inputs shows it, else as last known."""
    if not inputs and not kwargs:
        return [own_scale(net.model, b) for b in net.branches]
    with torch.no_grad(), untouched(net.model):
        return [float(v) for v in net.run(inputs, kwargs)[1]]


def changes_of(net: Knobs, own: list[float], lam: list[float]) -> dict[End, tuple[str, float]]:
    """What to do with each parameter: set it, or multiply it."""
    wanted: dict[End, list[tuple[str, float, Branch]]] = defaultdict(list)
    for branch, mine, value in zip(net.branches, own, lam, strict=True):
        if value == mine:
            continue
        if branch.scale is not None:
            wanted[branch.scale].append(("set", value, branch))
            continue
        if mine == 0:
            raise PathsumError(
                f"branch {branch.name} is multiplied by 0 in the model itself, so λ={value:.3g} cannot be folded into "
                "its weights: set the model's own scale instead"
            )
        if not branch.ends:
            raise PathsumError(
                f"λ of branch {branch.name} cannot be folded: it does not end in a linear map of its own, "
                f"{branch.stuck}; keep the knobs"
            )
        for end in branch.ends:
            wanted[end].append(("mul", value / mine, branch))
    for end, uses in wanted.items():
        check_uses(end, uses)
    return {end: uses[0][:2] for end, uses in wanted.items()}


def check_uses(end: End, uses: list[tuple[str, float, Branch]]) -> None:
    """A parameter that several calls read can be changed only if all of them end branches that change alike."""
    name = f"'{end.parameter}'" + ("" if end.entry is None else f"[{end.entry}]")
    if len({u[:2] for u in uses}) > 1:
        raise PathsumError(
            f"{name} ends several branches, {uses[0][2].name} and {uses[-1][2].name} among them, that are to be scaled "
            "differently: one weight cannot hold both"
        )
    if len(uses) != end.uses:
        raise PathsumError(
            f"λ of branch {uses[0][2].name} cannot be folded: {name} is read {end.uses} times in the model, and "
            f"{len(uses)} of them end a branch that λ is to be written into; keep the knobs"
        )
